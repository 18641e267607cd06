"""What the benchmark of fine-tuning makes of its rounds."""

from __future__ import annotations

from typing import Any

from benchmarks.training_page import Measured, figures


def measured(ours: int, **peers: int) -> Measured:
    """One round of two samples; the peaks of ours and of the peers."""

    def answer(peak_bytes: int) -> dict[str, Any]:
        return {"seconds": 1.0, "peak_bytes": peak_bytes, "num_positions": 20, "num_logits": 4}

    rounds = {name: [answer(peak)] for name, peak in {"ours": ours, **peers}.items()}
    return Measured(2, [10, 10], 4, [4, 8], rounds, dict.fromkeys(rounds, 100), {}, {}, {}, "2026-11-23")


def test_memory_is_held_against_the_thriftiest_peer_at_both_lengths_and_the_worse_ratio_is_told() -> None:
    found = figures({"mixed": measured(80, trl=100, swift=160), "equal": measured(99, trl=120, swift=90)})
    assert (found["memory_ratio_vs_best_mixed"], found["memory_ratio_vs_best_equal"]) == (0.8, 1.1)
    assert found["memory_ratio_vs_best"] == 1.1
    assert "memory_ratio_vs_best" not in figures({"mixed": measured(80)}), "without peers there is nothing to hold it against"
