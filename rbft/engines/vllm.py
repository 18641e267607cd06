"""vLLM as an `Engine`: `AsyncLLM` with continuous batching, a prefix cache over the video, and exact label reads.

On the CPU backend, sizes that must be set by environment variable are set here, before vllm is imported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from rbft.config import EngineConfig, ModelConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.engines.labels import Prefix, depth_below, label_tree, next_to_read, read_on_the_way, sum_over_tree, tokens_below
from rbft.engines.orphans import OWNER
from rbft.errors import EngineError, EngineGoneError
from rbft.model_folder import require_model_folder
from rbft.models.chat import ChatAdapter
from rbft.records import Clip, VideoSpec
from rbft.task import Message

_MAX_READ = 128
"""Tokens whose log-probabilities one request may ask for (`vllm.sampling_params.MAX_LOGPROB_TOKEN_IDS`)."""

_SAME_VIDEO, _LABELS, _TEXT = -1, 0, 1
"""Priorities of requests, the lower one first; what waits longer goes first among equals. Of a video whose labels are being read what is
left goes before other videos, while the caches hold what was computed of it; labels go before text, which takes long."""

_LOOK_EVERY_S = 1.0
"""While requests wait: whether the engine is dead."""

_Reads = dict[Prefix, dict[int, float]]
"""Node -> token -> log-probability."""


class VllmEngine:
    """Owns one `AsyncLLM`; must be built and used in a running event loop. See `rbft.engines.base.StreamingEngine`."""

    def __init__(self, model: ModelConfig, config: EngineConfig, spec: VideoSpec, seed: int = 0) -> None:
        require_model_folder(model.path)
        _set_environment(config)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncEngineArgs
        from vllm.exceptions import VLLMError
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        self._dead_error = EngineDeadError
        self._refusals = (VLLMError, ValueError)
        """Of one request, such as a prompt longer than the context; a dead engine's is a `VLLMError` as well."""
        self.adapter = ChatAdapter(model.path, spec)
        self._waiting: set[asyncio.Timeout] = set()
        self._next_look: asyncio.TimerHandle | None = None
        arguments = engine_arguments(model, config, self.adapter, seed)
        try:
            # With the sizes that vLLM gives to offline work. Those of an `AsyncLLM`, 2,048 tokens in a step and as many of encoded videos
            # kept, are less than one long video, on any GPU.
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineGoneError(f"{model.path}: vLLM cannot start: {_one_line(error)}") from error

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        rendered = await self._render(self.adapter.vllm_prompt(clip, messages))
        return self._generated(await self._run(rendered, self._text_params(sampling), _TEXT))

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        rendered = await self._render(self.adapter.vllm_prompt(clip, messages))
        async with aclosing(self._results(rendered, self._text_params(sampling, streamed=True), _TEXT)) as results:
            async for result in results:
                yield self._generated(result)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        return (await self._score(clip, messages, labels, None))[0]

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        logprobs, result = await self._score(clip, messages, labels, max_new_tokens)
        return Answer(logprobs, self._generated(result))

    async def check_health(self) -> None:
        try:
            await self._llm.check_health()
        except self._dead_error as error:
            raise EngineGoneError(f"the engine is dead: {_one_line(error)}") from error

    def close(self) -> None:
        self._llm.shutdown()

    async def _score(
        self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int | None
    ) -> tuple[dict[str, float], Any]:
        """Label -> log-likelihood, and the request that came first: greedy text of `max_new_tokens`, or one token."""
        answers = {label: self.adapter.answer_ids(label) for label in labels}
        tree = label_tree(answers)
        prompt = self.adapter.vllm_prompt(clip, messages)
        rendered = await self._render(prompt)
        # By its name, so that nobody has to look at the frames again.
        known = prompt | {"multi_modal_uuids": rendered["mm_hashes"]}
        # All that may follow the root with it: requests of one step share what the first of them computes of the video. But not where the
        # root's text is asked for anyway, which reads all along its way.
        below = [(token,) for token in tree[()] if (token,) in tree] if max_new_tokens is None else []
        (reads, first), *walks = await asyncio.gather(
            self._walk(rendered, tree, (), max_new_tokens or 1), *(self._walk_on(known, tree, node, _LABELS) for node in below)
        )
        while True:
            for walk, _ in walks:
                reads.update(walk)
            if not (nodes := next_to_read(tree, reads)):
                break
            walks = await asyncio.gather(*(self._walk_on(known, tree, node, _SAME_VIDEO) for node in nodes))
        return sum_over_tree(answers, reads), first

    async def _walk_on(self, prompt: dict[str, Any], tree: dict[Prefix, list[int]], node: Prefix, priority: int) -> tuple[_Reads, Any]:
        rendered = await self._render(prompt | {"prompt_token_ids": [*prompt["prompt_token_ids"], *node]})
        return await self._walk(rendered, tree, node, priority=priority)

    async def _walk(
        self, rendered: Any, tree: dict[Prefix, list[int]], node: Prefix, max_new_tokens: int | None = None, priority: int = _LABELS
    ) -> tuple[_Reads, Any]:
        """Write greedily after the prompt that ends with `node`: the reads of `node` and of those below that the text goes through, and the
        request."""
        tokens = tokens_below(tree, node)
        if len(tokens) > _MAX_READ:
            tokens = tree[node]
        chunk, *others = [tokens[start : start + _MAX_READ] for start in range(0, len(tokens), _MAX_READ)]
        result = await self._run(rendered, self._reading(chunk, max_new_tokens or depth_below(tree, node)), priority)
        output = result.outputs[0]
        logprobs = [_logprobs(step) for step in output.logprobs]
        for other in others:  # a task with more labels than one request may read
            more = await self._run(rendered, self._reading(other, 1), priority)
            logprobs[0] |= _logprobs(more.outputs[0].logprobs[0])
        reads = read_on_the_way(tree, node, output.token_ids, logprobs)
        if node not in reads:
            raise EngineError("the engine gave no log-probabilities of the labels' tokens")
        return reads, result

    def _reading(self, tokens: Sequence[int], max_tokens: int) -> Any:
        """Of a request that writes greedily and tells the log-probabilities of `tokens` at each step."""
        return self._params(max_tokens=max_tokens, temperature=0.0, logprobs=len(tokens), logprob_token_ids=list(tokens))

    def _text_params(self, sampling: Sampling, *, streamed: bool = False) -> Any:
        seed = sampling.seed if sampling.temperature > 0 else None
        return self._params(streamed=streamed, max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, seed=seed)

    def _params(self, *, streamed: bool = False, **settings: Any) -> Any:
        """A stream has vLLM's own detokeniser, which goes on from where it was: decoding all tokens again and again would cost their
        square."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.CUMULATIVE if streamed else RequestOutputKind.FINAL_ONLY
        return SamplingParams(**settings, stop_token_ids=[self.adapter.end_token_id], detokenize=streamed, output_kind=kind)

    def _generated(self, result: Any) -> Generated:
        output = result.outputs[0]
        return Generated(
            text=self.adapter.decode(output.token_ids) if result.finished else output.text.strip(),
            num_prompt_tokens=len(result.prompt_token_ids),
            num_tokens=len(output.token_ids),
            finish_reason=output.finish_reason or "",
            num_cached_tokens=result.num_cached_tokens or 0,
        )

    async def _render(self, prompt: dict[str, Any]) -> Any:
        """What the engine takes: tokens expanded, frames through the processor unless its cache knows them."""
        try:
            (rendered,) = await self._llm.renderer.render_cmpl_async([prompt])
        except self._dead_error as error:
            raise EngineGoneError(f"the engine died: {_one_line(error)}") from error
        except self._refusals as error:
            raise EngineError(f"the engine refused the request: {_one_line(error)}") from error
        return rendered

    async def _run(self, rendered: Any, params: Any, priority: int) -> Any:
        """The last result."""
        result = None
        async with aclosing(self._results(rendered, params, priority)) as results:
            async for latest in results:
                result = latest
        return result

    async def _results(self, rendered: Any, params: Any, priority: int) -> AsyncGenerator[Any, None]:
        """vLLM's results as they grow, at least one."""
        result = None
        try:
            # Closed on the way out, however that is: then vLLM aborts a request that is not finished.
            async with aclosing(self._llm.generate(rendered, params, request_id=uuid.uuid4().hex, priority=priority)) as stream:
                while (latest := await self._next(stream)) is not None:
                    result = latest
                    if result.outputs:
                        yield result
        except self._dead_error as error:
            raise EngineGoneError(f"the engine died: {_one_line(error)}") from error
        except self._refusals as error:
            raise EngineError(f"the engine refused the request: {_one_line(error.__cause__ or error)}") from error
        if result is None or not result.outputs:
            raise EngineError("the engine gave no output for the request")

    async def _next(self, stream: AsyncGenerator[Any, None]) -> Any:
        """Its next result, None at its end. vLLM 0.32 leaves a request waiting for ever whose engine dies before it has been taken in."""
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._waiting.add(patience)
                if self._next_look is None:
                    self._next_look = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)
                try:
                    return await anext(stream, None)
                finally:
                    self._waiting.discard(patience)
        except TimeoutError:
            if not patience.expired():
                raise
            raise EngineGoneError("the engine died before it had taken the request in") from None

    def _look(self) -> None:
        """End the wait of all who wait for a dead engine; again in a while if anybody waits."""
        loop = asyncio.get_running_loop()
        for patience in self._waiting if self._llm.errored else ():
            if not patience.expired():
                patience.reschedule(loop.time())
        self._next_look = loop.call_later(_LOOK_EVERY_S, self._look) if self._waiting else None


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
        "mm_processor_cache_gb": config.video_cache_gib,
        "mm_processor_kwargs": adapter.video_kwargs,
        "disable_log_stats": True,
        "max_logprobs": _MAX_READ,
        "scheduling_policy": "priority",  # first come, first served among equals
    }
    if config.tensor_parallel_size > 1:
        # An actor has its GPUs to itself. vLLM would otherwise ask Ray for others, which nobody has.
        arguments["distributed_executor_backend"] = "mp"
    elif config.num_gpus == 0:
        # In the engine's own process, as on a GPU: what waits for a worker's answer turns in circles, on a core that others need.
        arguments["distributed_executor_backend"] = "uni"
    if config.block_size is not None:
        arguments["block_size"] = config.block_size
    if config.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = config.max_num_batched_tokens
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
    # oneDNN keeps what it compiled for each number of tokens in a step, a thousand by default: a quarter of a GiB, filled over an hour.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # vLLM takes "mp" for "uni" on CPUs, so that it can bind threads there; not with this set. `AsyncLLM` has its engine's process anyway.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    logging.getLogger("vllm.engine.arg_utils").setLevel(logging.ERROR)  # of a seed set in this process, which runs no model


def _logprobs(step: dict[int, Any]) -> dict[int, float]:
    return {token: read.logprob for token, read in step.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
