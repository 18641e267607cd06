"""Ways to have rationales written, behind one interface: the job, and the peers it is held against in `benchmarks.generation`.

    job            our Ray Data plan and actors (`ray_jobs.inference`): decodes in child processes, writes parts, notes, metrics
    async_llm      a bare `AsyncLLM` loop over the same files, with as many decode threads in its own process
    llm            `LLM.generate` on clips that are decoded already
    ray_data_llm   `ray.data.llm`'s processor on clips that are decoded already
    hf             transformers' `generate`, one clip after the other, decoded already

All stay warm between rounds. The two that run in Ray get every round's videos when they start, and wait for a file before each round.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import pyarrow as pa

from ray_jobs.engine_actor import EngineActor
from ray_jobs.inference import run_inference
from ray_jobs.work import Block, Work
from rbft import rows
from rbft.config import RunConfig
from rbft.engines.vllm import engine_arguments
from rbft.models.chat import ChatAdapter
from rbft.records import Clip, Example, rationale_schema
from rbft.video.decode import decode

_POLL_S = 0.02
"""Those that wait must not take time from the one at work."""
_ROUND_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Case:
    """One size of the benchmark: what every contender is given."""

    name: str
    config: RunConfig
    examples: Sequence[Example]
    num_rounds: int
    folder: Path

    @property
    def prompt(self) -> Sequence[Any]:
        return self.config.task.rationale_messages()

    def decode(self, example: Example) -> Clip:
        return decode(example.uri, self.config.video.spec(), example.start_s, example.end_s)

    def adapter(self) -> ChatAdapter:
        return ChatAdapter(self.config.model.path, self.config.video.spec())

    def engine_arguments(self, adapter: ChatAdapter) -> dict[str, Any]:
        return engine_arguments(self.config.model, self.config.engine, adapter, self.config.seed)


@dataclass(frozen=True)
class Outcome:
    """What a contender did in one round."""

    num_videos: int
    num_tokens: int
    seconds: float
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Processor seconds by what they went into; of the job only."""


class Contender(Protocol):
    """Built warm: its constructor returns when it could begin."""

    def run(self, round_: int) -> Outcome:
        """Write about every video of the case once."""
        ...

    def close(self) -> None: ...


class Job:
    """`run_inference` in a thread, a folder a round."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._folders = [str(case.folder / f"round-{number}") for number in range(case.num_rounds)]
        config = case.config
        self._work = [
            Work("rationale", folder, list(case.examples), config.model, config.task, {"benchmark": case.name}, config.gates)
            for folder in self._folders
        ]
        self._failure = ""
        self._thread = threading.Thread(target=self._run_all, daemon=True)
        self._thread.start()

    def run(self, round_: int) -> Outcome:
        folder = Path(self._folders[round_])
        num_blocks = -(-len(self._case.examples) // self._case.config.engine.rows_per_block)
        folder.mkdir(parents=True, exist_ok=True)
        started, cpu_before = time.monotonic(), _cpu_s()
        (folder / "go").touch()
        _wait(lambda: len(list(folder.glob("parts/*.parquet"))) == num_blocks, lambda: self._failure)
        seconds = time.monotonic() - started
        cpu_s: dict[str, float] = {}
        for (kind, pid), after in _cpu_s().items():
            cpu_s[kind] = cpu_s.get(kind, 0.0) + after - cpu_before.get((kind, pid), 0.0)
        table = rows.read_parts(str(folder), rationale_schema())
        return Outcome(len(table), sum(table["num_tokens"].to_pylist()), seconds, cpu_s)

    def close(self) -> None:
        self._thread.join(60)

    def _run_all(self) -> None:
        try:
            run_inference(self._case.config, "vllm", self._work, actor_class=PatientActor)
        except Exception:  # noqa: BLE001  # whoever waits for the round must hear of it
            self._failure = traceback.format_exc()


class PatientActor(EngineActor):
    """Begins a block when its round does."""

    async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, list[int]]]:
        folder = Block.loads(batch["block"][0].as_py()).folder
        while not os.path.exists(f"{folder}/go"):
            await asyncio.sleep(_POLL_S)
        async for result in super().__call__(batch):
            yield result


class BareAsyncLLM:
    """What one would write by hand: decode in threads, hand over, collect."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._adapter = case.adapter()
        self._threads = ThreadPoolExecutor(case.config.engine.decode_workers)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._llm: Any = self._call(self._start())

    def run(self, round_: int) -> Outcome:
        started = time.monotonic()
        tokens = self._call(self._write_all())
        return Outcome(len(tokens), sum(tokens), time.monotonic() - started)

    def close(self) -> None:
        self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_ROUND_TIMEOUT_S)

    async def _start(self) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._case.engine_arguments(self._adapter)))

    async def _write_all(self) -> list[int]:
        in_flight = asyncio.Semaphore(2 * self._case.config.engine.max_num_seqs)
        return list(await asyncio.gather(*(self._write(example, in_flight) for example in self._case.examples)))

    async def _write(self, example: Example, in_flight: asyncio.Semaphore) -> int:
        async with in_flight:
            clip = await self._loop.run_in_executor(self._threads, self._case.decode, example)
            prompt = self._adapter.vllm_prompt(clip, self._case.prompt)
            token_ids: Sequence[int] = ()
            async for output in self._llm.generate(prompt, _greedy(self._case, self._adapter), request_id=uuid.uuid4().hex):
                token_ids = output.outputs[0].token_ids
            self._adapter.decode(token_ids)
            return len(token_ids)


class OfflineLLM:
    """vLLM's offline class, given everything at once."""

    def __init__(self, case: Case) -> None:
        from vllm import LLM

        adapter = case.adapter()
        arguments = case.engine_arguments(adapter)
        self._llm = LLM(**arguments)
        self._params = _greedy(case, adapter)
        self._prompts = [adapter.vllm_prompt(case.decode(example), case.prompt) for example in case.examples]

    def run(self, round_: int) -> Outcome:
        started = time.monotonic()
        outputs = self._llm.generate(self._prompts, self._params, use_tqdm=False)
        return Outcome(len(outputs), sum(len(output.outputs[0].token_ids) for output in outputs), time.monotonic() - started)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class RayDataLLM:
    """`ray.data.llm`, rows of token ids and raw frames in, texts out."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._outcomes: list[Outcome] = []
        self._failure = ""
        self._started = threading.Event()
        case.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run_all, daemon=True)
        self._thread.start()

    def run(self, round_: int) -> Outcome:
        started = time.monotonic()
        (self._case.folder / f"ray-data-llm-{round_}").touch()
        _wait(lambda: len(self._outcomes) > round_, lambda: self._failure)
        return replace(self._outcomes[round_], seconds=time.monotonic() - started)

    def close(self) -> None:
        self._thread.join(60)

    def _run_all(self) -> None:
        try:
            self._process()
        except Exception:  # noqa: BLE001  # whoever waits for the round must hear of it
            self._failure = traceback.format_exc()

    def _process(self) -> None:
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        case, adapter = self._case, self._case.adapter()
        arguments = case.engine_arguments(adapter)
        videos = []
        for example in case.examples:
            prompt = adapter.vllm_prompt(case.decode(example), case.prompt)
            videos.append((prompt["prompt_token_ids"], prompt["multi_modal_data"]))
        shared = ray.put(videos)
        folder = str(case.folder)
        sampling = {"max_tokens": case.config.generation.max_new_tokens, "temperature": 0.0, "stop_token_ids": [adapter.end_token_id]}

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            while not os.path.exists(f"{folder}/ray-data-llm-{row['round']}"):
                time.sleep(_POLL_S)
            token_ids, frames = ray.get(shared)[row["video"]]
            return {"tokenized_prompt": token_ids, "multimodal_data": frames, "sampling_params": sampling, "round": row["round"]}

        config = vLLMEngineProcessorConfig(
            model_source=arguments.pop("model"),
            engine_kwargs=arguments,
            batch_size=case.config.engine.rows_per_block,
            concurrency=1,
            placement_group_config={"bundles": [{"CPU": case.config.engine.num_cpus}]},  # else it waits for a GPU
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        processor = build_processor(
            config,
            preprocess,
            lambda row: {"round": row["round"], "num_tokens": len(row["generated_tokens"])},
            preprocess_map_kwargs={"num_cpus": 0.1, "concurrency": 4},  # those that wait must not keep others from running
        )
        size = case.config.engine.rows_per_block
        tables = [
            pa.table({"round": [round_] * len(part), "video": part})
            for round_ in range(case.num_rounds)
            for start in range(0, len(videos), size)
            for part in [list(range(start, min(start + size, len(videos))))]
        ]
        counted = [0] * case.num_rounds
        tokens = [0] * case.num_rounds
        answers = processor(ray.data.from_arrow(tables)).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for row in (row for batch in answers for row in batch.to_pylist()):
            counted[row["round"]] += 1
            tokens[row["round"]] += row["num_tokens"]
            if counted[row["round"]] == len(videos):
                self._outcomes.append(Outcome(len(videos), tokens[row["round"]], 0.0))


class OneByOneHF:
    """transformers, as its documentation shows it; `num_videos` of the case's, as it is slow."""

    def __init__(self, case: Case, num_videos: int) -> None:
        from rbft.models.load import load_model

        self._case, self._adapter = case, case.adapter()
        self._model: Any = load_model(case.config.model.path, case.config.model.dtype, case.config.model.attention).eval()
        self._clips = [case.decode(example) for example in case.examples[:num_videos]]

    def run(self, round_: int) -> Outcome:
        import torch

        started, num_tokens = time.monotonic(), 0
        with torch.inference_mode():
            for clip in self._clips:
                inputs = self._adapter.collate([self._adapter.encode(clip, self._case.prompt)])
                del inputs["labels"]
                output = self._model.generate(
                    **inputs,
                    max_new_tokens=self._case.config.generation.max_new_tokens,
                    do_sample=False,
                    eos_token_id=self._adapter.end_token_id,
                )
                answer = output[0, inputs["input_ids"].shape[1] :]
                self._adapter.decode(answer)
                num_tokens += len(answer)
        return Outcome(len(self._clips), num_tokens, time.monotonic() - started)

    def close(self) -> None:
        self._model = None


def _cpu_s() -> dict[tuple[str, int], float]:
    """(What it does, process) -> processor seconds so far, of the job's driver and of its actor with all it started."""
    spent = {("driver", os.getpid()): sum(psutil.Process().cpu_times()[:2])}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may be ending
            if "PatientActor" not in " ".join(process.cmdline()):
                continue
            for each in (process, *process.children(recursive=True)):
                kind = "actor" if each == process else "decoders" if "rbft.video.child" in each.cmdline() else "engine"
                spent[kind, each.pid] = sum(each.cpu_times()[:2])
    return spent


def _greedy(case: Case, adapter: ChatAdapter) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=case.config.generation.max_new_tokens, temperature=0.0, stop_token_ids=[adapter.end_token_id], detokenize=False
    )


def _wait(condition: Any, failure: Any) -> None:
    deadline = time.monotonic() + _ROUND_TIMEOUT_S
    while not condition():
        if failure() or time.monotonic() > deadline:
            raise RuntimeError(failure() or f"not done in {_ROUND_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
