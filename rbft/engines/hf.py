"""Plain transformers as an `Engine`: one request at a time, quick to start; the peer that vLLM's numbers are held against."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import torch

from rbft.config import ModelConfig
from rbft.engines.base import Generated, Sampling
from rbft.models.chat import IGNORE_INDEX, ChatAdapter
from rbft.models.load import load_model
from rbft.records import Clip, VideoSpec
from rbft.task import Message


class HFEngine:
    """One model on the first GPU, or on the CPU. See `rbft.engines.base.Engine`."""

    def __init__(self, model: ModelConfig, spec: VideoSpec, device: str | None = None) -> None:
        self.adapter = ChatAdapter(model.path, spec)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = load_model(model.path, model.dtype, model.attention).to(self._device).eval()
        self._lock = threading.Lock()

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        return await asyncio.to_thread(self._generate, clip, messages, sampling)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        return await asyncio.to_thread(self._score, clip, messages, labels)

    async def check_health(self) -> None:
        return None

    def close(self) -> None:
        self._model = None

    @torch.inference_mode()
    def _generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        with self._lock:
            batch = self.adapter.collate([self.adapter.encode(clip, messages)])
            del batch["labels"]
            inputs = self._on_device(batch)
            torch.manual_seed(sampling.seed)
            # Temperature alone shapes the distribution, as in vLLM: Qwen's own generation_config would cut it to the top token.
            shape = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
            draw = {"do_sample": True, **shape} if sampling.temperature > 0 else {"do_sample": False}
            output_BL = self._model.generate(
                **inputs, max_new_tokens=sampling.max_new_tokens, eos_token_id=self.adapter.end_token_id, repetition_penalty=1.0, **draw
            )
        num_prompt_tokens = inputs["input_ids"].shape[1]
        tokens = output_BL[0, num_prompt_tokens:].tolist()
        finish_reason = "stop" if tokens and tokens[-1] == self.adapter.end_token_id else "length"
        return Generated(self.adapter.decode(tokens), num_prompt_tokens, len(tokens), finish_reason)

    @torch.inference_mode()
    def _score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        # Teacher-forced: one row a label, as in training. The tree saves nothing here, as there is no cache to share the video in.
        batch = self.adapter.collate([self.adapter.encode(clip, messages, label) for label in labels])
        labels_BL = batch.pop("labels")[:, 1:]
        with self._lock:
            hidden_BLH = self._model.model(**self._on_device(batch), use_cache=False).last_hidden_state[:, :-1]
            supervised_BL = labels_BL.to(self._device) != IGNORE_INDEX
            logprobs_NV = torch.log_softmax(self._model.lm_head(hidden_BLH[supervised_BL]).float(), dim=-1)
        tokens_N = labels_BL[labels_BL != IGNORE_INDEX].to(self._device)
        logprobs_N = logprobs_NV.gather(1, tokens_N[:, None])[:, 0]
        lengths = (labels_BL != IGNORE_INDEX).sum(dim=1).tolist()
        return {label: float(part.double().sum()) for label, part in zip(labels, logprobs_N.split(lengths), strict=True)}

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pixels = batch["pixel_values_videos"].to(self._device, self._model.dtype)
        return {name: value.to(self._device) for name, value in batch.items()} | {"pixel_values_videos": pixels}
