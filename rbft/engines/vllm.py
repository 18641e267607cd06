"""vLLM as an `Engine`: `AsyncLLM` with continuous batching, a prefix cache over the video, and exact label reads.

On the CPU backend, sizes that must be set by environment variable are set here, before vllm is imported.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from rbft.config import EngineConfig, ModelConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.engines.labels import label_tree, sum_over_tree
from rbft.engines.orphans import OWNER
from rbft.errors import EngineError, EngineGoneError
from rbft.model_folder import require_model_folder
from rbft.models.chat import ChatAdapter
from rbft.records import Clip, VideoSpec
from rbft.task import Message

_LABELS_FIRST, _TEXT_AFTER = 0, 1
"""Priorities of requests, the lower one first; what waits longer goes first among equals. They count where an engine goes by them."""


class VllmEngine:
    """Owns one `AsyncLLM`; must be built and used in a running event loop. See `rbft.engines.base.StreamingEngine`."""

    def __init__(self, model: ModelConfig, config: EngineConfig, spec: VideoSpec, seed: int = 0, *, labels_first: bool = False) -> None:
        """With `labels_first` requests for labels pass those for text in the engine's queue."""
        require_model_folder(model.path)
        _set_environment(config)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        self._dead_error = EngineDeadError
        self.adapter = ChatAdapter(model.path, spec)
        arguments = engine_arguments(model, config, self.adapter, seed)
        if labels_first:
            arguments["scheduling_policy"] = "priority"
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineGoneError(f"{model.path}: vLLM cannot start: {_one_line(error)}") from error

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        params = self._text_params(sampling, detokenize=False)
        return self._written(await self._run(self.adapter.vllm_prompt(clip, messages), params, _TEXT_AFTER))

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        # vLLM's own detokeniser goes on from where it was; decoding all tokens again and again would cost their square.
        params = self._text_params(sampling, detokenize=True)
        async with aclosing(self._outputs(self.adapter.vllm_prompt(clip, messages), params, _TEXT_AFTER)) as results:
            async for result in results:
                yield self._written(result)

    def _text_params(self, sampling: Sampling, *, detokenize: bool) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed if sampling.temperature > 0 else None,
            stop_token_ids=[self.adapter.end_token_id],
            detokenize=detokenize,
        )

    def _written(self, result: Any) -> Generated:
        output = result.outputs[0]
        return Generated(
            text=self.adapter.decode(output.token_ids) if result.finished else output.text.strip(),
            num_prompt_tokens=len(result.prompt_token_ids),
            num_tokens=len(output.token_ids),
            finish_reason=output.finish_reason or "",
            num_cached_tokens=result.num_cached_tokens or 0,
        )

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        answers = {label: self.adapter.answer_ids(label) for label in labels}
        tree = label_tree(answers)
        # The root first: it puts the video into the prefix cache, where the other nodes find it.
        root, *others = tree
        reads = {root: await self._read(clip, messages, root, tree[root])}
        values = await asyncio.gather(*(self._read(clip, messages, node, tree[node]) for node in others))
        reads.update(zip(others, values, strict=True))
        return sum_over_tree(answers, reads)

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        # One after the other: the text finds the video in the prefix cache.
        logprobs = await self.score(clip, messages, labels)
        return Answer(logprobs, await self.generate(clip, messages, Sampling(max_new_tokens)))

    async def check_health(self) -> None:
        try:
            await self._llm.check_health()
        except self._dead_error as error:
            raise EngineGoneError(f"the engine is dead: {_one_line(error)}") from error

    def close(self) -> None:
        self._llm.shutdown()

    async def _read(self, clip: Clip, messages: Sequence[Message], node: Sequence[int], tokens: list[int]) -> dict[int, float]:
        """Log-probability of each of `tokens` right after the prompt and `node`."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=len(tokens), logprob_token_ids=tokens, detokenize=False)
        result = await self._run(self.adapter.vllm_prompt(clip, messages, node), params, _LABELS_FIRST)
        read = result.outputs[0].logprobs[0]
        return {token: read[token].logprob for token in tokens}

    async def _run(self, prompt: dict[str, Any], params: Any, priority: int) -> Any:
        """The last result."""
        result = None
        async with aclosing(self._outputs(prompt, params, priority)) as results:
            async for latest in results:
                result = latest
        return result

    async def _outputs(self, prompt: dict[str, Any], params: Any, priority: int) -> AsyncGenerator[Any, None]:
        """vLLM's results as they grow, at least one."""
        result = None
        try:
            (rendered,) = await self._llm.renderer.render_cmpl_async([prompt])
            # Closed on the way out, however that is: then vLLM aborts a request that is not finished.
            async with aclosing(self._llm.generate(rendered, params, request_id=uuid.uuid4().hex, priority=priority)) as stream:
                async for result in stream:
                    if result.outputs:
                        yield result
        except self._dead_error as error:
            raise EngineGoneError(f"the engine died: {_one_line(error)}") from error
        except ValueError as error:
            raise EngineError(f"the engine refused the request: {_one_line(error)}") from error
        if result is None or not result.outputs:
            raise EngineError("the engine gave no output for the request")


def engine_arguments(model: ModelConfig, config: EngineConfig, adapter: ChatAdapter, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of vLLM's `AsyncEngineArgs` for this model and configuration."""
    arguments: dict[str, Any] = {
        "model": model.path,
        "dtype": model.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": config.enforce_eager,
        "seed": seed,
        "limit_mm_per_prompt": {"image": 0, "video": 1},
        "mm_processor_kwargs": adapter.video_kwargs,
        "disable_log_stats": True,
    }
    if config.tensor_parallel_size > 1:
        # An actor has its GPUs to itself. vLLM would otherwise ask Ray for others, which nobody has.
        arguments["distributed_executor_backend"] = "mp"
    if config.block_size is not None:
        arguments["block_size"] = config.block_size
    if config.num_gpus > 0:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    return arguments


def _set_environment(config: EngineConfig) -> None:
    os.environ[OWNER] = str(os.getpid())
    if config.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    if config.num_gpus > 0:
        return
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(config.kv_cache_gib_cpu))))
    # Ray places actors and the kernel their threads; vLLM's own binding would put every engine on the same cores.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
