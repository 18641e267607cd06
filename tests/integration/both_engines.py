"""vLLM and plain transformers side by side on one model."""

from __future__ import annotations

import asyncio

from rbft.config import EngineConfig, ModelConfig
from rbft.engines.hf import HFEngine
from rbft.engines.vllm import VllmEngine
from rbft.records import VideoSpec

ENGINE = EngineConfig(max_model_len=1024, max_num_seqs=8, num_gpus=0, num_actors=1, kv_cache_gib_cpu=1, block_size=32, enforce_eager=True)
"""For tiny models."""


class Engines:
    """vLLM and transformers on the same model, in one event loop."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, spec: VideoSpec) -> None:
        self._runner = asyncio.Runner()
        self.vllm: VllmEngine = self._runner.run(self._start(model, engine, spec))
        self.hf = HFEngine(model, spec)

    async def _start(self, model: ModelConfig, engine: EngineConfig, spec: VideoSpec) -> VllmEngine:
        return VllmEngine(model, engine, spec)

    def both(self, method: str, *arguments: object) -> tuple[object, object]:
        return tuple(self._runner.run(getattr(engine, method)(*arguments)) for engine in (self.vllm, self.hf))

    def by_vllm(self, method: str, *arguments: object) -> object:
        return self._runner.run(getattr(self.vllm, method)(*arguments))

    def close(self) -> None:
        self.vllm.close()
        self.hf.close()
        self._runner.close()
