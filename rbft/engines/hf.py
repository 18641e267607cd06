"""Plain transformers as an `Engine`: one request at a time, quick to start; the peer that vLLM's numbers are held against."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import torch

from rbft.config import ModelConfig
from rbft.engines.base import Generated, Sampling
from rbft.engines.labels import label_tree, sum_over_tree
from rbft.models.chat import ChatAdapter
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

    def _inputs(self, clip: Clip, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        batch = self.adapter.collate([self.adapter.encode(clip, messages)])
        del batch["labels"]
        dtype = self._model.dtype
        return {name: value.to(self._device, dtype if value.is_floating_point() and name.startswith("pixel") else None) for name, value in batch.items()}

    @torch.inference_mode()
    def _generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        with self._lock:
            inputs = self._inputs(clip, messages)
            torch.manual_seed(sampling.seed)
            draw = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature > 0 else {"do_sample": False}
            output_BL = self._model.generate(
                **inputs, max_new_tokens=sampling.max_new_tokens, eos_token_id=self.adapter.end_token_id, repetition_penalty=1.0, **draw
            )
        num_prompt_tokens = inputs["input_ids"].shape[1]
        tokens = output_BL[0, num_prompt_tokens:].tolist()
        finish_reason = "stop" if tokens and tokens[-1] == self.adapter.end_token_id else "length"
        return Generated(self.adapter.decode(tokens), num_prompt_tokens, len(tokens), finish_reason)

    @torch.inference_mode()
    def _score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        answers = {label: self.adapter.answer_ids(label) for label in labels}
        tree = label_tree(answers)
        with self._lock:
            inputs = self._inputs(clip, messages)
            reads = {node: self._read(inputs, node, tokens) for node, tokens in tree.items()}
        return sum_over_tree(answers, reads)

    def _read(self, inputs: dict[str, torch.Tensor], node: Sequence[int], tokens: list[int]) -> dict[int, float]:
        extra = torch.tensor([list(node)], dtype=torch.long, device=self._device).reshape(1, len(node))
        extended = dict(inputs)
        extended["input_ids"] = torch.cat([inputs["input_ids"], extra], dim=1)
        extended["attention_mask"] = torch.ones_like(extended["input_ids"])
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(extra)], dim=1)
        logits_V = self._model(**extended, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        logprobs_V = torch.log_softmax(logits_V, dim=-1)
        return {token: float(logprobs_V[token]) for token in tokens}
