"""What `make gates` concludes from trials and slots."""

from __future__ import annotations

import pytest

from miniature.gates import describe, judge
from miniature.protocol import load_protocol
from rbft.evaluation.study import Study, make_study
from rbft.records import Prediction

SLOTS = {"general": {"overall": 0.97}, "target": {"overall": 0.75}}


def study(right: dict[str, int]) -> Study:
    """Two worlds in which each system is right about so many of 100 abnormal clips, and about all of 100 normal ones."""
    rows = {
        system: [Prediction(f"n{i}", "normal", "normal") for i in range(100)]
        + [Prediction(f"a{i}", "abnormal", "abnormal" if i < right.get(system, 50) else "normal") for i in range(100)]
        for system in load_protocol().systems
    }
    return make_study([rows, rows], ("normal", "abnormal"))


def test_each_system_is_taken_at_its_own_best_rate() -> None:
    trials = {1e-4: study({"direct-sft-2": 70, "rb-ft-human": 72}), 2e-4: study({"direct-sft-2": 60, "rb-ft-human": 90}), 4e-4: study({})}
    result = judge(load_protocol(), trials, SLOTS)
    assert result["best_rates"]["direct-sft-2"] == 1e-4 and result["best_rates"]["rb-ft-human"] == 2e-4
    headroom = result["gates"]["oracle headroom"]
    assert headroom["value"] == pytest.approx((0.90 - 0.70) / 2) and headroom["holds"]
    assert "zero-shot" not in result["trials"] and {len(by_rate) for by_rate in result["trials"].values()} == {3}


@pytest.mark.parametrize(
    ("general", "target", "oracle", "failing"),
    [
        (0.97, 0.75, 62, []),
        (0.89, 0.75, 62, ["general slots"]),
        (0.97, 0.69, 62, ["target slots"]),
        (0.97, 0.86, 62, ["target slots"]),
        (0.97, 0.75, 58, ["oracle headroom"]),
    ],
)
def test_a_gate_that_does_not_hold_is_said(general: float, target: float, oracle: int, failing: list[str]) -> None:
    slots = {"general": {"overall": general}, "target": {"overall": target}}
    result = judge(load_protocol(), dict.fromkeys((1e-4, 2e-4, 4e-4), study({"rb-ft-human": oracle})), slots)
    assert [name for name, gate in result["gates"].items() if not gate["holds"]] == failing
    assert describe(result).count("DOES NOT HOLD") == len(failing)
