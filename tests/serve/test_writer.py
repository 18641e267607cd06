"""Rationales by another model than the one that classifies: which it is, whether it fits, and what each of the two is asked."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbft import artifacts, storage
from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer, RationaleStart, TaskAnswer
from rbft.config import DataConfig, EngineConfig, LoraConfig, ModelConfig, RunConfig, ServeConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.errors import ArtifactError, ConfigError, EngineGoneError, ModelError
from rbft.layout import RunLayout, Stage
from rbft.models.adapters import add_adapters, is_adapter, save_adapter
from rbft.models.load import TASK_CARD, load_model, make_card
from rbft.records import Clip, VideoSpec
from rbft.task import Dimension, Message
from serve.classifier import VideoClassifier
from serve.clips import Seen
from serve.deployment import open_video_classifier
from serve.model import find_writer, what_to_serve
from tests.serve.samples import SPEC, TASK
from tests.serve.scripted import ScriptedClassifier, client_of

CLIP = Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 8.0, "pyav")
STAGE_1_TASK = TASK.model_copy(update={"dimensions": (Dimension(heading="Objects", describe="what is there"),)})


class RecordingEngine:
    """Says the name of its model's folder under a heading; is dead if told so."""

    def __init__(self, model: ModelConfig, config: EngineConfig, spec: VideoSpec, seed: int) -> None:
        self.path = Path(model.path)
        self.config = config
        self.spec = spec
        self.asked: list[str] = []
        self.is_dead = False
        self.num_closed = 0

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        raise NotImplementedError

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        self.asked.append(messages[0]["content"][1]["text"])
        yield Generated(f"Objects: {self.path}", 9, 3, "stop")

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        self.asked.append(messages[0]["content"][1]["text"])
        return {"normal": -0.5, "abnormal": -1.0}

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise NotImplementedError

    async def check_health(self) -> None:
        if self.is_dead:
            raise EngineGoneError(f"{self.path}: dead")

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def made(tmp_path: Path, trained_folder: Path) -> RunConfig:
    """A run that has trained both stages of `rb-ft`, and of `rb-ft-human` the first not to its end; `direct-sft-1` has no first."""
    config = RunConfig(
        name="run",
        output_dir=str(tmp_path / "runs"),
        task=TASK,
        data=DataConfig(folder="videos"),
        model=ModelConfig(path=str(trained_folder), dtype="float32"),
        engine=EngineConfig(gpu_memory_utilization=0.8, kv_cache_gib_cpu=6, decode_workers=1),
        serve=ServeConfig(rationale_model="stage-1"),
    )
    layout = RunLayout(config.run_dir)
    current = {}
    trained: list[tuple[str, Stage, str]] = [("rb-ft", "rationale", "1111"), ("rb-ft", "classify", "2222")]
    trained += [("rb-ft-human", "rationale", "3333"), ("direct-sft-1", "classify", "4444")]
    for system, stage, fingerprint in trained:
        final = Path(layout.train(system, stage, fingerprint)) / "final"
        shutil.copytree(trained_folder, final)
        if stage == "rationale":
            storage.write_json(f"{final}/{TASK_CARD}", make_card(STAGE_1_TASK, SPEC, {}))
        if fingerprint != "3333":
            artifacts.publish(final, str(final), fingerprint, {})
        current[f"train/{system}/{stage}"] = str(final.parent)
    storage.write_json(layout.run_json, {"artifacts": current})
    return config


def serving(config: RunConfig, **settings: Any) -> RunConfig:
    return config.model_copy(update={"serve": config.serve.model_copy(update=settings)})


def carded(folder: Path, target: Path, card: dict[str, Any] | None) -> str:
    """A copy of the model in `folder` with that task card."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(TASK_CARD))
    if card is not None:
        storage.write_json(f"{target}/{TASK_CARD}", card)
    return str(target)


def opened(config: RunConfig, stack: ExitStack, folder: str | None = None) -> tuple[VideoClassifier, list[RecordingEngine]]:
    """What a replica opens, and its engines in the order in which they started."""
    engines: list[RecordingEngine] = []

    def start(*arguments: Any) -> RecordingEngine:
        engines.append(RecordingEngine(*arguments))
        return engines[-1]

    config, source = what_to_serve(config, folder)
    return open_video_classifier(config, source, stack, start), engines


def asked(classifier: VideoClassifier) -> tuple[ClassifyAnswer, RationaleAnswer]:
    async def ask() -> tuple[ClassifyAnswer, RationaleAnswer]:
        answer = await classifier.classify(CLIP, None, None)
        *_, why = [piece async for piece in classifier.explain(Seen(CLIP, None, answer.label))]
        assert isinstance(why, RationaleAnswer)
        return answer, why

    return asyncio.run(ask())


def test_stage_1_is_the_runs_own_model_after_stage_1(made: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    writer = find_writer(made.model_copy(update={"output_dir": str(tmp_path / "elsewhere")}))
    assert writer is not None and (writer.name, writer.is_adapter) == ("run/rb-ft/stage-1", False)
    assert writer.uri == f"{tmp_path}/elsewhere/run/train/rb-ft/rationale/1111/final"
    assert find_writer(serving(made, rationale_model=None)) is None


def test_a_stage_1_that_is_not_there_says_what_to_do(made: RunConfig) -> None:
    cases: dict[str, tuple[str, type[Exception]]] = {
        "rb-ft-human": ("not complete, its training was cut short; run the pipeline first .* name a folder in serve", ArtifactError),
        "rb-ft-shuffled": ("has trained no rb-ft-shuffled model by stage 1 yet; run the pipeline", ArtifactError),
        "direct-sft-1": ("direct-sft-1 has no stage 1; serve a system that has one, or name a folder", ConfigError),
        "zero-shot": ("zero-shot has no stage 1", ConfigError),
    }
    for system, (message, kind) in cases.items():
        with pytest.raises(kind, match=message):
            find_writer(serving(made, system=system))


def test_each_of_the_two_is_asked_as_its_own_card_says_and_named_in_its_answer(made: RunConfig) -> None:
    with ExitStack() as stack:
        classifier, (first, second) = opened(made, stack)
        answer, why = asked(classifier)
    assert (first.path.parent.name, second.path.parent.name) == ("2222", "1111")
    assert first.asked == [TASK.question] and second.asked == [STAGE_1_TASK.rationale_prompt]
    assert answer.model == ModelVersion(name="run/rb-ft", fingerprint="2222") == classifier.version
    assert why.model == ModelVersion(name="run/rb-ft/stage-1", fingerprint="1111") == classifier.rationale_version
    assert why.sections == {"Objects": str(second.path)} and why.gates["has_sections"]


def test_two_engines_share_the_memory_of_one(made: RunConfig) -> None:
    with ExitStack() as stack:
        _, engines = opened(made, stack)
        shares = [(engine.config.gpu_memory_utilization, engine.config.kv_cache_gib_cpu, engine.spec) for engine in engines]
        assert shares == [(0.4, 3, SPEC)] * 2
        _, engines = opened(serving(made, rationale_model=None), stack)
        assert [engine.config for engine in engines] == [made.engine]


def test_the_health_of_both_is_asked_and_both_are_closed(made: RunConfig) -> None:
    with ExitStack() as stack:
        classifier, engines = opened(made, stack)
        asyncio.run(classifier.check_health())
        for engine in engines:
            engine.is_dead = True
            with pytest.raises(EngineGoneError, match=str(engine.path)):
                asyncio.run(classifier.check_health())
            engine.is_dead = False
    assert [engine.num_closed for engine in engines] == [1, 1]
    classifier.close()
    assert [engine.num_closed for engine in engines] == [2, 2]


def test_a_second_engine_that_does_not_start_closes_the_first(made: RunConfig) -> None:
    engines: list[RecordingEngine] = []

    def start(*arguments: Any) -> RecordingEngine:
        if engines:
            raise EngineGoneError("no room on the GPU")
        engines.append(RecordingEngine(*arguments))
        return engines[0]

    config, source = what_to_serve(made, None)
    with ExitStack() as stack:
        with pytest.raises(EngineGoneError, match="no room"):
            open_video_classifier(config, source, stack, start)
        assert engines[0].num_closed == 1


def test_a_writer_of_other_labels_or_video_settings_is_refused_with_both_folders(
    made: RunConfig, trained_folder: Path, tmp_path: Path
) -> None:
    others = make_card(TASK.model_copy(update={"labels": ("calm", "abnormal")}), SPEC, {})
    slower = make_card(TASK, dataclasses.replace(SPEC, fps=0.5), {})
    for name, card, told in [("labels", others, "its labels are calm, abnormal, and not normal, abnormal"), ("spec", slower, "fps=0.5")]:
        writer = carded(trained_folder, tmp_path / name, card)
        with pytest.raises(ModelError, match=rf"^{writer}: cannot write the rationales of .*/2222/final: .*{told}"):
            what_to_serve(serving(made, rationale_model=writer), None)


def test_what_is_known_of_a_writer_only_in_the_replica_is_refused_there_before_any_engine(
    made: RunConfig, trained_folder: Path, tmp_path: Path
) -> None:
    config, source = what_to_serve(made, None)
    assert source.writer is not None
    writer = carded(trained_folder, tmp_path / "slower", make_card(TASK, dataclasses.replace(SPEC, fps=0.5), {}))
    source = dataclasses.replace(source, writer=dataclasses.replace(source.writer, uri=writer))  # as one in a store is found
    with ExitStack() as stack, pytest.raises(ModelError, match=f"^{writer}: cannot write"):
        open_video_classifier(config, source, stack, RecordingEngine)


def test_a_writer_without_a_card_is_asked_as_the_classifier_is(made: RunConfig, trained_folder: Path, tmp_path: Path) -> None:
    writer = carded(trained_folder, tmp_path / "bare", None)
    with ExitStack() as stack:
        classifier, (_, second) = opened(serving(made, rationale_model=writer), stack)
        _, why = asked(classifier)
    assert second.asked == [TASK.rationale_prompt]
    assert why.model == ModelVersion(name="bare", fingerprint=artifacts.model_fingerprint(writer))


@pytest.mark.parametrize("is_base_where_it_was", [True, False])
def test_an_adapter_is_merged_for_as_long_as_it_is_served(
    made: RunConfig, trained_folder: Path, tmp_path: Path, is_base_where_it_was: bool
) -> None:
    model = load_model(trained_folder, "float32")
    add_adapters(model, LoraConfig(rank=4, alpha=8), 0)
    weights = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    folder = tmp_path / "adapter"
    folder.mkdir()
    base = trained_folder if is_base_where_it_was else tmp_path / "gone"
    save_adapter(model, weights, str(base), folder, make_card(STAGE_1_TASK, SPEC, {}), readme="")
    artifacts.publish(folder, str(folder), "5555", {"base": artifacts.model_fingerprint(trained_folder)})
    with ExitStack() as stack:
        classifier, (first, second) = opened(serving(made, rationale_model=str(folder)), stack)
        _, why = asked(classifier)
        assert second.path != folder and (second.path / "model.safetensors").is_file() and first.path.parent.name == "2222"
        load_model(second.path, "float32")
    assert why.model == ModelVersion(name="adapter", fingerprint="5555") and second.asked == [STAGE_1_TASK.rationale_prompt]
    assert not second.path.exists() and folder.exists() and trained_folder.exists()


def test_the_task_and_the_stream_name_the_writer() -> None:
    classifier = ScriptedClassifier()
    writer = ModelVersion(name="run/rb-ft/stage-1", fingerprint="1111")

    async def scenario() -> tuple[TaskAnswer, TaskAnswer, str]:
        async with client_of(classifier) as http:
            before = await http.get("/v1/task")
            classifier.rationale_version, classifier.rationale_task = writer, STAGE_1_TASK
            after = await http.get("/v1/task")
            stream = await http.post("/v1/rationale", files={"video": b"x"}, headers={"Accept": "text/event-stream"})
            return TaskAnswer.model_validate_json(before.text), TaskAnswer.model_validate_json(after.text), stream.text

    before, after, stream = asyncio.run(scenario())
    assert before.rationale_model is None and before.headings == ("Scene",)
    assert after.rationale_model == writer and after.model == classifier.version
    assert (after.rationale_prompt, after.headings) == (STAGE_1_TASK.rationale_prompt, ("Objects",))
    start = next(line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: "))
    assert RationaleStart.model_validate_json(start).model == writer
