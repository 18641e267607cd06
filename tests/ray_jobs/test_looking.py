"""Attention is read once and kept beside the predictions of the system whose model it is; boxes that a model finds are kept one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import held_out
from ray_jobs.looking import _read_maps, attention_maps, boxes_file, find_boxes, ground_videos, measure_looks
from ray_jobs.run import Run
from rbft import artifacts, rows
from rbft.config import load_config
from rbft.engines.base import Answer, Generated, Sampling
from rbft.errors import EngineError, EngineGoneError
from rbft.evaluation.looking.attention_map import AttentionMap, map_schema, maps_from_table
from rbft.evaluation.looking.box_files import boxes_from_table, found_schema, found_table, read_boxes
from rbft.evaluation.looking.boxes import Box
from rbft.records import Clip
from rbft.task import Message
from tests.tiny_models import make_tiny_model


def open_run(repository: Path, folder: Path, *overrides: str) -> Run:
    """Of three test videos."""
    world = write_world(folder / "world", sample_world(seed=5, sizes={"train": 2, "test": 3}))
    always = [f"output_dir={folder}/runs", "evaluation.systems=[zero-shot]", f"data.manifest={world}"]
    always.append(f"model.path={make_tiny_model(folder / 'model')}")
    return Run(load_config(repository / "configs/miniature.yaml", [*always, *overrides]))


class ScriptedEngine:
    """Says about a video the next thing that it is given; an error is raised."""

    def __init__(self, said: Sequence[str | EngineError]) -> None:
        self._said = iter(said)

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        text = next(self._said)
        if isinstance(text, EngineError):
            raise text
        return Generated(text, 1, 1, "stop")

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        raise NotImplementedError

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise NotImplementedError

    async def check_health(self) -> None: ...

    def close(self) -> None: ...


BOX = '[{"bbox_2d": [0, 0, 28, 28], "label": "it"}]'


def test_what_a_model_has_found_outlives_its_engine_and_is_not_asked_for_again(repository: Path, tmp_path: Path) -> None:
    run = open_run(repository, tmp_path, "evaluation.masking.find=grounding", "engine.max_num_seqs=1")
    examples, folder = held_out(run), f"{tmp_path}/found"
    # Four moments a video: one answer of the first is no JSON, the engine refuses the second, and dies of the third.
    said: list[str | EngineError] = [BOX, BOX, "none", BOX, EngineError("too long"), EngineGoneError("dead")]
    with pytest.raises(EngineGoneError):
        asyncio.run(ground_videos(ScriptedEngine(said), run.config, examples, folder))
    first, second, third = (example.id for example in examples)
    assert rows.done_ids(folder, found_schema()) == {first, second}
    assert rows.done_ids(folder, found_schema(), errors_too=False) == {first}
    asyncio.run(ground_videos(ScriptedEngine([BOX] * 4 + ["[]"] * 4), run.config, examples[1:], folder))
    table = rows.read_parts(folder, found_schema())
    assert {id_: len(boxes) for id_, boxes in boxes_from_table(table).items()} == {first: 3, second: 4, third: 0}
    assert sum(table["num_unreadable"].to_pylist()) == 1 and table["error_code"].null_count == 3


def test_found_boxes_become_the_file_that_all_systems_use(repository: Path, tmp_path: Path) -> None:
    run = open_run(repository, tmp_path, "evaluation.masking.find=grounding")
    path = Path(boxes_file(run))
    box = Box(0.25, 0.25, 0.5, 0.5, time_s=1.0, name="it")
    for number, example in enumerate(held_out(run)):
        rows.write_part(str(path.with_suffix("")), found_table(example.id, (box,) if number else (), 0, None))
    find_boxes(run)  # everything is found: nothing starts
    assert run.config.evaluation.masking.boxes == str(path)
    assert read_boxes(path) == {example.id: (box,) for example in held_out(run)[1:]}


def test_attention_is_measured_against_boxes_of_the_videos_that_can_be_read(repository: Path, tmp_path: Path) -> None:
    run = open_run(repository, tmp_path)
    examples = held_out(run)
    lost = replace(examples[-1], uri=f"{tmp_path}/lost.mp4")
    even = AttentionMap(np.full(12, 1 / 12, np.float32), np.full((2, 2, 2), 1 / 12, np.float32))
    maps = {system: {example.id: even for example in examples} for system in ("direct-sft-1", "rb-ft")}
    found = measure_looks(run.config, [*examples[:-1], lost], maps, frozenset({examples[0].id, lost.id}))
    assert found.keys() == maps.keys()
    for looks in found.values():
        assert looks.here.keys() == looks.elsewhere.keys() == {example.id for example in examples[:-1]}
        assert looks.maps.keys() == looks.boxes.keys() == {examples[0].id}
        for focus in looks.here.values():
            assert focus.inside == pytest.approx(focus.area, abs=0.02), "attention spread evenly"


def test_maps_are_of_the_readable_videos_and_are_read_only_once(repository: Path, tmp_path: Path) -> None:
    run = open_run(repository, tmp_path)
    folder = f"{tmp_path}/predictions"
    run.record_artifact("evaluation/zero-shot", folder)
    examples = held_out(run)
    lost = replace(examples[-1], uri=f"{tmp_path}/lost.mp4")
    table = _read_maps(run.config, run.config.model, [*examples[:-1], lost])
    assert table["error_code"].is_null().to_pylist() == [True, True, False]
    assert all(np.isclose(each.shares_L.sum(), 1, atol=1e-4) for each in maps_from_table(table).values())

    kept = f"{folder}/attention-{artifacts.fingerprint(run.config.evaluation.attention.model_dump(mode='json', exclude={'num_shown'}))}"
    rows.write_part(kept, table)
    found = attention_maps(run, "zero-shot", examples)  # everything is there: nothing starts
    assert found.keys() == {example.id for example in examples[:-1]}
    assert rows.done_ids(kept, map_schema()) == {example.id for example in examples}
    assert attention_maps(run, "zero-shot", examples[:1]).keys() == {examples[0].id}
