"""Loss curves out of the training log, as runs that were killed and resumed leave it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rbft.errors import ArtifactError
from rbft.evaluation.curves import read_curve, read_curves


def _log(folder: Path, lines: list[str]) -> str:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("\n".join(lines))
    return f"{folder}/log.jsonl"


def _line(step: int, loss: float | None) -> str:
    return json.dumps({"step": step, "loss": loss, "lr_language": 1e-3, "lr_vision": 2e-4, "grad_norm": 0.7})


def test_a_run_gives_a_curve_for_each_system_and_stage(tmp_path: Path) -> None:
    _log(tmp_path / "a", [_line(1, 2.5), _line(2, 2.25)])
    _log(tmp_path / "b", [_line(1, 0.5)])
    first, second = read_curves({("rb-ft", "rationale"): f"{tmp_path}/a", ("rb-ft", "classify"): f"{tmp_path}/b"})
    assert (first.system, first.stage, first.steps, first.losses) == ("rb-ft", "rationale", (1, 2), (2.5, 2.25))
    assert (second.stage, second.losses) == ("classify", (0.5,))


def test_a_step_that_was_logged_again_after_a_resume_counts_once_with_its_last_loss(tmp_path: Path) -> None:
    uri = _log(tmp_path / "x", [_line(1, 3.0), _line(2, 2.0), _line(3, 1.5), _line(2, 1.9), _line(3, 1.4)])
    curve = read_curve(uri, "rb-ft", "stage-1")
    assert (curve.steps, curve.losses) == ((1, 2, 3), (3.0, 1.9, 1.4))


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    uri = _log(tmp_path / "x", [_line(1, 3.0), '{"step": 2, "lo', _line(2, 2.0), '{"step": 3, "loss": 1.'])
    assert read_curve(uri, "rb-ft", "stage-1").losses == (3.0, 2.0)


def test_a_loss_that_is_not_finite_stays_in_the_curve(tmp_path: Path) -> None:
    uri = _log(tmp_path / "x", [_line(1, 3.0), '{"step": 2, "loss": NaN}', _line(3, None)])
    losses = read_curve(uri, "rb-ft", "stage-1").losses
    assert losses[0] == 3.0 and all(math.isnan(loss) for loss in losses[1:])


@pytest.mark.parametrize("lines", [[], ["not json"], ['{"step": 1}']])
def test_a_log_without_a_loss_is_refused_with_its_name(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ArtifactError, match=r"log\.jsonl: no line holds a step and its loss"):
        read_curve(_log(tmp_path / "x", lines), "rb-ft", "stage-1")
