"""Who fails where: counts add up, p values are McNemar's, and unpaired predictions are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from rbft.errors import DataError
from rbft.evaluation.failures import PairedCounts, analyse_failures, analysis_json, analysis_text, known_attributes
from rbft.records import Example, Prediction


def predictions(answers: list[str]) -> list[Prediction]:
    """All of them are truly "a"."""
    return [Prediction(f"v{i}", "a", answer, {"a": 0.5, "b": 0.5}) for i, answer in enumerate(answers)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=40))
def test_counts_of_an_attribute_add_up_to_all(videos: list[tuple[str, str, str]]) -> None:
    ours, theirs, kinds = (list(each) for each in zip(*videos, strict=True))
    attributes = {"kind": {kind: {f"v{i}" for i, each in enumerate(kinds) if each == kind} for kind in "xyz"}}
    found = analyse_failures(predictions(ours), predictions(theirs)[::-1], names=("new", "old"), attributes=attributes)
    assert found.overall == PairedCounts(
        videos_like(videos, "a", "a"), videos_like(videos, "a", "b"), videos_like(videos, "b", "a"), videos_like(videos, "b", "b")
    )
    for part in ("both_right", "only_system", "only_baseline", "both_wrong"):
        assert sum(getattr(counts, part) for counts in found.by_attribute["kind"].values()) == getattr(found.overall, part)
    assert len(found.only_system) == found.overall.only_system and len(found.only_baseline) == found.overall.only_baseline


def videos_like(videos: list[tuple[str, str, str]], ours: str, theirs: str) -> int:
    return sum((first, second) == (ours, theirs) for first, second, _ in videos)


def test_the_p_value_is_that_of_mcnemars_exact_test() -> None:
    assert PairedCounts(50, 9, 2, 3).p_value == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert PairedCounts(50, 0, 0, 3).p_value == 1.0


def test_labels_and_categories_are_known_without_being_told() -> None:
    examples = [Example("v0", "v0.mp4", label="a", category="Wildlife"), Example("v1", "v1.mp4", label="a")]
    found = analyse_failures(predictions(["a", "b"]), predictions(["b", "b"]), names=("new", "old"), attributes=known_attributes(examples))
    assert found.by_attribute["category"] == {"Wildlife": PairedCounts(0, 1, 0, 0), "no category": PairedCounts(0, 0, 0, 1)}
    assert found.by_attribute["label"]["a"].num_videos == 2
    assert "category: Wildlife" in analysis_text(found)
    assert analysis_json(found)["by_attribute"]["category"]["Wildlife"]["only_system"] == 1
    assert (
        "category"
        not in analyse_failures(
            predictions(["a"]), predictions(["a"]), names=("new", "old"), attributes=known_attributes(examples[1:])
        ).by_attribute
    )


def test_what_all_videos_share_has_no_line() -> None:
    attributes = {"split": {"test": {"v0", "v1"}}, "kind": {"x": {"v0"}, "y": {"v1"}}}
    found = analyse_failures(predictions(["a", "b"]), predictions(["a", "a"]), names=("new", "old"), attributes=attributes)
    assert [title for title, _ in found.lines()] == ["all", "kind: x", "kind: y"]


def test_systems_on_other_videos_are_refused() -> None:
    with pytest.raises(DataError, match=r"new and old are not paired: v1 \(of 1\)"):
        analyse_failures(predictions(["a", "a"]), predictions(["a"]), names=("new", "old"), attributes={})
