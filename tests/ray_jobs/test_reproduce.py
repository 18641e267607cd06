"""The paper's tables from predictions that are there: which rows they have, and what is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import held_out
from ray_jobs.reproduce import check_same_videos, lay_out, reproduce_configs
from ray_jobs.run import Run
from rbft import rows
from rbft.config import RunConfig, load_config
from rbft.errors import ConfigError, DataError
from rbft.evaluation.imported import add_to_run
from rbft.evaluation.looking.box_files import write_boxes
from rbft.evaluation.looking.boxes import Box
from rbft.evaluation.predictions import predictions_table
from rbft.evaluation.reproduction import TABLES
from rbft.records import Prediction, prediction_schema
from tests.tiny_models import make_tiny_model

Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world and three models."""
    folder = tmp_path_factory.mktemp("sources")
    write_world(folder / "world", sample_world(seed=5, sizes={"train": 4, "validation": 4, "test": 6}))
    for name in ("first/model", "second/model", "other"):
        make_tiny_model(folder / name)
    make_tiny_model(folder / "qwen2", "qwen2_vl")
    return folder


@pytest.fixture
def configure(repository: Path, tmp_path: Path, sources: Path) -> Configure:
    def with_model(model: str, *overrides: str) -> RunConfig:
        always = [f"output_dir={tmp_path}", f"data.manifest={sources}/world/manifest.parquet", f"name={model.replace('/', '-')}"]
        return load_config(repository / "configs/miniature.yaml", [*always, f"model.path={sources}/{model}", *overrides])

    return with_model


def evaluated(run: Run, system: str, masked_share: float | None = None) -> None:
    """Predictions of `system`, all of them right."""
    folder = f"{run.layout.root}/predictions/{system}"
    said = [Prediction(example.id, example.label, example.label, masked_share=masked_share) for example in held_out(run)]
    is_masked = masked_share is not None
    rows.write_part(folder, predictions_table(said, masked=is_masked))
    rows.finish(folder, "predictions", prediction_schema(masked=is_masked), [row.id for row in said], system, {})
    run.record_artifact(f"evaluation/{system}", folder)


def test_backbones_need_names_that_tell_them_apart(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="two --config have models called model"):
        reproduce_configs(["table1"], [configure("first/model"), configure("second/model")])


def test_runs_that_test_on_other_videos_are_no_rows_of_one_table(configure: Configure) -> None:
    configs = [configure("first/model"), configure("other", "evaluation.split=validation")]
    with pytest.raises(ConfigError, match=r"other and first-model test on other videos, e\.g\. "):
        reproduce_configs(["table1"], configs)
    check_same_videos([Run(config) for config in (configs[0], configure("other", "seed=8"))])  # the world has splits of its own


def test_rows_of_one_table_have_the_same_masks(configure: Configure) -> None:
    configs = [configure("first/model"), configure("other", "evaluation.masking.fill=black")]
    with pytest.raises(ConfigError, match=r"differ in evaluation\.masking"):
        reproduce_configs(["table1", "table5"], configs)


@pytest.mark.parametrize("what", ["table5", "figure2"])
def test_a_file_of_boxes_of_other_videos_is_refused(configure: Configure, tmp_path: Path, what: str) -> None:
    boxes = write_boxes(tmp_path / "boxes.parquet", {"elsewhere": [Box(0, 0, 0.5, 0.5)]})
    with pytest.raises(DataError, match=r"has boxes of 1 videos, e\.g\. 'elsewhere', and of none of the 6 that are tested on"):
        reproduce_configs([what], [configure("other", f"evaluation.masking.boxes={boxes}")])


def test_a_model_that_does_not_answer_with_boxes_is_not_asked_for_them(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"grounding asks a model that answers with boxes \(qwen2_5_vl\), and .* is of type qwen2_vl"):
        reproduce_configs(["table5"], [configure("qwen2", "evaluation.masking.find=grounding")])


def test_a_key_that_is_missing_is_said_before_anything_is_trained(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        reproduce_configs(["table1"], [configure("other", "evaluation.api_models=[gpt-4o]")])


def test_predictions_made_elsewhere_have_a_row_beside_the_authors(configure: Configure, tmp_path: Path) -> None:
    spec = TABLES[1]
    config = configure("other", "training.seeds=[1, 2]")
    run = Run(config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"systems": spec.systems})}))
    for system in spec.systems:
        evaluated(run, system)
    source = tmp_path / "theirs.csv"
    source.write_text("as it came")
    texts = [Prediction(row.id, row.label, None, generated=f"{row.label}", generated_label=row.label) for row in held_out(run)]
    answers = [replace(texts[0], generated_label=None, error_code="model_refused"), *texts[1:]]
    add_to_run(run.layout.root, "UniFormerV2", answers, source)
    table = lay_out(spec, config.evaluation.masking, [Run(run.config)])
    assert [row.name for row in table.rows[:3]] == ["UniFormerV2", "paper: UniFormerV2", "Zero-shot"]
    assert table.rows[0].note.startswith("by generated text; 1 refused; 83.33 % answered")
    assert table.rows[3].name == "paper: Qwen2.5-VL-7B, Zero-shot", "told by the architecture"
    assert table.title.endswith("(miniature world)")
    assert any(f"Of seed {config.seed} alone" in note and "training.seeds: 1, 2" in note for note in table.notes)


def test_table_5_says_how_much_its_masks_hide(configure: Configure) -> None:
    spec, config = TABLES[5], configure("other")
    run = Run(config)
    for system in spec.methods:
        evaluated(run, system, 0.25 if "+" in system else None)
    (note,) = (note for note in lay_out(spec, config.evaluation.masking, [run]).notes if "masked" in note)
    assert note.startswith("6 of 6 videos are masked, on average 25.00 %") and "drawn with seed 0" in note
