"""What vLLM makes of a prompt, by its own code, without starting an engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rbft.models.chat import ChatAdapter
from rbft.records import Clip
from rbft.task import Message

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@dataclass(frozen=True)
class VllmInputs:
    """A prompt as the engine core gets it, and the positions its model runner computes."""

    prompt_token_ids: list[int]
    pixel_values_PD: torch.Tensor
    """Not normalised: 0.32 does that on the device."""
    grid_thw: torch.Tensor
    second_per_grid_ts: float | None
    positions_3L: torch.Tensor
    position_delta: int


class VllmProcessor:
    """vLLM's multimodal processor and M-RoPE code for the model in `folder`."""

    def __init__(self, folder: Path, adapter: ChatAdapter, dtype: str) -> None:
        from vllm.config import ModelConfig
        from vllm.multimodal import MULTIMODAL_REGISTRY

        config = ModelConfig(
            model=str(folder),
            dtype=dtype,
            max_model_len=4096,
            mm_processor_kwargs=adapter.video_kwargs,
            limit_mm_per_prompt={"image": 0, "video": 1},
        )
        self._adapter = adapter
        self._processor = MULTIMODAL_REGISTRY.create_processor(config)
        self._config = config.hf_config

    def __call__(self, clip: Clip, messages: list[Message], answer_prefix: tuple[int, ...] = ()) -> VllmInputs:
        from vllm.multimodal.inputs import MultiModalFeatureSpec
        from vllm.multimodal.processing.context import TimingContext
        from vllm.multimodal.processing.inputs import ProcessorInputs

        prompt = self._adapter.vllm_prompt(clip, messages)
        items = self._processor.info.parse_mm_data(prompt["multi_modal_data"])
        made = self._processor.apply(ProcessorInputs([*prompt["prompt_token_ids"], *answer_prefix], items), TimingContext(enabled=False))
        video, place = made["mm_kwargs"]["video"][0], made["mm_placeholders"]["video"][0]
        feature = MultiModalFeatureSpec(data=video, modality="video", identifier="clip", mm_position=place)
        positions_3L, delta = self._positions(made["prompt_token_ids"], [feature])
        return VllmInputs(
            prompt_token_ids=made["prompt_token_ids"],
            pixel_values_PD=video["pixel_values_videos"].data,
            grid_thw=video["video_grid_thw"].data,
            second_per_grid_ts=video["second_per_grid_ts"].data.item() if "second_per_grid_ts" in video else None,
            positions_3L=positions_3L,
            position_delta=delta,
        )

    def _positions(self, tokens: list[int], features: list[Any]) -> tuple[torch.Tensor, int]:
        from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
        from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration

        kinds = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen2_vl": Qwen2VLForConditionalGeneration}
        model = kinds[self._config.model_type]
        # The method wants a model for its configuration only.
        this = SimpleNamespace(config=self._config)
        this.iter_mm_grid_thw = lambda mm_features: model.iter_mm_grid_thw(this, mm_features)
        positions_3L, delta = model.get_mrope_input_positions(this, tokens, features)
        return positions_3L, int(delta)
