"""Attention for the report: read once, kept beside the predictions of the system whose model it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import held_out
from ray_jobs.looking import _read_maps, attention_maps
from ray_jobs.run import Run
from rbft import artifacts, rows
from rbft.config import load_config
from rbft.evaluation.looking.attention_map import map_schema, maps_from_table
from tests.tiny_models import make_tiny_model


def test_maps_are_of_the_readable_videos_and_are_read_only_once(repository: Path, tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", sample_world(seed=5, sizes={"train": 2, "test": 3}))
    overrides = [f"output_dir={tmp_path}/runs", "evaluation.systems=[zero-shot]", f"data.manifest={world}"]
    model = make_tiny_model(tmp_path / "model")
    run = Run(load_config(repository / "configs/miniature.yaml", [*overrides, f"model.path={model}"]))
    folder = f"{tmp_path}/predictions"
    run.record_artifact("evaluation/zero-shot", folder)
    examples = held_out(run)
    lost = replace(examples[-1], uri=f"{tmp_path}/lost.mp4")
    table = _read_maps(run.config, run.config.model, [*examples[:-1], lost])
    assert table["error_code"].is_null().to_pylist() == [True, True, False]
    assert all(np.isclose(each.shares_L.sum(), 1, atol=1e-4) for each in maps_from_table(table).values())

    kept = f"{folder}/attention-{artifacts.fingerprint(run.config.evaluation.attention.model_dump(mode='json'))}"
    rows.write_part(kept, table)
    found = attention_maps(run, "zero-shot", examples)  # everything is there: nothing starts
    assert found.keys() == {example.id for example in examples[:-1]}
    assert rows.done_ids(kept, map_schema()) == {example.id for example in examples}
    assert attention_maps(run, "zero-shot", examples[:1]).keys() == {examples[0].id}
