"""API models as systems of a run, from the job to the report, against a small server on loopback. No Ray: nothing else is evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import evaluate, read_predictions
from ray_jobs.pipeline import job
from ray_jobs.run import Run
from rbft.config import load_config
from rbft.errors import ConfigError, JobError
from rbft.plan import build_plan, format_plan
from tests.openai_server import Server, completion, failure
from tests.tiny_models import make_tiny_model

REFUSAL = completion("I'm sorry, I can't help with that.")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.replies = [completion("normal"), REFUSAL, completion("Who knows?"), completion("abnormal")]
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    world = write_world(tmp_path_factory.mktemp("world"), sample_world(seed=5, sizes={"train": 4, "test": 6}))
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    return [f"data.manifest={world}", f"model.path={model}", "evaluation.systems=[]"]


class OpenRun:
    """Opens a run with one API model, which is asked one video at a time."""

    def __init__(self, repository: Path, folder: Path, inputs: list[str], server: Server) -> None:
        self._file, self._inputs, self._folder, self._url = repository / "configs/miniature.yaml", inputs, folder, server.url

    def __call__(self, *overrides: str, **settings: Any) -> Run:
        model = {"name": "asked", "model": "m", "url": self._url, "max_concurrency": 1, "max_retries": 0, **settings}
        models = f"evaluation.api_models={json.dumps([model])}"
        return Run(load_config(self._file, [f"output_dir={self._folder}", *self._inputs, models, *overrides]))


@pytest.fixture
def open_run(repository: Path, tmp_path: Path, inputs: list[str], server: Server) -> OpenRun:
    return OpenRun(repository, tmp_path, inputs, server)


def test_an_api_model_is_a_row_of_report_and_summary_by_its_text(open_run: OpenRun, server: Server) -> None:
    run = open_run(price_per_million_input_tokens=10.0, price_per_million_output_tokens=0.0)
    job(run)
    rows = read_predictions(run, "asked")
    assert sorted(str(row.generated_label) for row in rows) == ["None", "None", "abnormal", "abnormal", "abnormal", "normal"]
    right = sum(row.generated_label == row.label for row in rows)
    folder = Path(str(run.artifact("evaluation/asked")))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"fingerprint", "generate"} and metrics["generate"]["accuracy"] == pytest.approx(right / 6)
    assert metrics["generate"]["coverage"] == pytest.approx(4 / 6)
    usage = json.loads((folder / "usage.json").read_text())
    assert (usage["num_refusals"], usage["num_input_tokens"], usage["cost_usd"]) == (1, 6 * 21, pytest.approx(6 * 21e-5))
    assert (usage["served_models"], usage["answered"]) == ({"m-2026-01-31": 6}, ["2026-01-01", "2026-01-01"])
    summary = json.loads(Path(run.layout.summary).read_text())
    assert summary["systems"]["asked"]["accuracy"] == pytest.approx(right / 6)
    assert summary["by_generated_text"] == ["asked"]
    report = Path(run.layout.report).read_text()
    assert "By generated text" in report and "By label likelihood" not in report
    assert "API models" in report and "m-2026-01-31" in report and "model_refused" in report and "Who knows?" in report

    num_asked = len(server.asked)
    job(open_run())
    assert len(server.asked) == num_asked  # complete
    other = open_run("name=another", "data.max_bad_fraction=0")
    evaluate([other])
    assert len(server.asked) == num_asked  # from the cache; and refusals are not videos that cannot be used
    assert read_predictions(other, "asked") == rows


@pytest.mark.parametrize(
    "override",
    [{"model": "n"}, {"max_frames": 4}, {"max_new_tokens": 9}, {"extra_body": {"top_p": 0.5}}, {"top_logprobs": 3}, {"frames": "video"}],
)
def test_what_determines_the_answers_gives_them_another_place(open_run: OpenRun, server: Server, override: dict[str, Any]) -> None:
    first = open_run()
    evaluate([first])
    place = first.artifact("evaluation/asked")
    num_asked = len(server.asked)
    other = open_run(**override)
    evaluate([other])
    assert other.artifact("evaluation/asked") != place and len(server.asked) > num_asked


def test_too_many_failures_fail_the_job_and_are_asked_again_only_when_told(open_run: OpenRun, server: Server) -> None:
    server.replies = [completion("normal"), failure(500, "down"), failure(413, "too large"), completion("normal")]
    with pytest.raises(JobError, match="evaluate asked: 2 of 6 videos could not be used"):
        evaluate([open_run()])
    run = open_run()
    with pytest.raises(JobError, match="2 of 6"):
        evaluate([run])
    assert len(server.asked) == 6
    run.retry_errors = True
    evaluate([run])
    assert len(server.asked) == 8 and all(row.error_code is None for row in read_predictions(run, "asked"))


def test_a_key_that_is_not_set_is_said_before_anything_is_trained(open_run: OpenRun) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        job(open_run("evaluation.systems=[direct-sft-1]", api_key_env="NO_SUCH_KEY"))


def test_the_plan_says_what_leaves_the_house(open_run: OpenRun, server: Server) -> None:
    text = format_plan(build_plan(open_run(max_frames=4).config))
    assert f"evaluate asked: up to 4 frames of each of 6 videos, the question and the videos' context go to {server.url}" in text
