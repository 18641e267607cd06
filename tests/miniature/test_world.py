"""The world keeps its promises: no single slot decides, nothing but the rule decides, and the same seed is the same world."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from miniature import world
from miniature.draw import FRAME_SIDE, NUM_FRAMES, render
from miniature.slots import SLOT_NAMES, parse, score
from miniature.world import Slots, WorldClip, sample_general, sample_target, sample_world
from miniature.write import decode_mp4, encode_mp4, write_world
from rbft.records import check_schema, manifest_schema

NUM_PLANS = 6000


@pytest.fixture(scope="module")
def clips() -> list[WorldClip]:
    return sample_world(3, {"train": NUM_PLANS // 2, "test": NUM_PLANS // 2})


def balanced_accuracy_of_best_rule(values: list[str], labels: list[str]) -> float:
    """Of the best map from one slot's value to a label, chosen with the truth in hand."""
    totals = Counter(labels)
    by_value = Counter(zip(values, labels, strict=True))
    gain = sum(max(by_value[value, label] / totals[label] for label in totals) for value in set(values))
    return gain / len(totals)


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_no_single_slot_decides_the_label(clips: list[WorldClip], slot: str) -> None:
    best = balanced_accuracy_of_best_rule([getattr(clip.plan.slots, slot) for clip in clips], [clip.label for clip in clips])
    assert 0.5 <= best < 0.72


def test_subject_and_action_together_decide_the_label(clips: list[WorldClip]) -> None:
    assert all(clip.label == world.target_label(clip.plan.slots) for clip in clips)
    pairs = [f"{clip.plan.slots.subject} {clip.plan.slots.action}" for clip in clips]
    assert balanced_accuracy_of_best_rule(pairs, [clip.label for clip in clips]) == pytest.approx(1.0)


def test_about_a_third_of_a_world_is_normal(clips: list[WorldClip]) -> None:
    assert np.mean([clip.label == "normal" for clip in clips]) == pytest.approx(world.NORMAL_SHARE, abs=0.03)


def test_the_generic_rule_is_mostly_normal_and_agrees_on_two_thirds_of_the_cells() -> None:
    cells = [Slots(s[0], "red", a[0], "porch") for s in world.SUBJECT_GROUPS for a in world.ACTION_GROUPS]
    assert sum(world.generic_label(cell) == world.target_label(cell) for cell in cells) == 6
    assert sum(world.generic_label(cell) == "normal" for cell in cells) == 6


def test_the_general_domain_never_shows_the_held_back_combinations_and_the_target_does(clips: list[WorldClip]) -> None:
    general = {(plan.slots.subject, plan.slots.action) for plan in (sample_general(0, "train", i) for i in range(2000))}
    assert not general & world.UNSEEN_COMBINATIONS
    assert len(general) == len(world.SUBJECTS) * len(world.ACTIONS) - len(world.UNSEEN_COMBINATIONS)
    target = {(clip.plan.slots.subject, clip.plan.slots.action) for clip in clips}
    assert target >= world.UNSEEN_COMBINATIONS


def test_the_general_domain_is_nearly_clean() -> None:
    assert max(sample_general(0, "train", i).severity for i in range(500)) <= world.GENERAL_MAX_SEVERITY


def test_severity_is_independent_of_label_and_split(clips: list[WorldClip]) -> None:
    severity = np.array([clip.plan.severity for clip in clips])
    assert severity.mean() == pytest.approx(0.5, abs=0.02)
    for attribute in ("label", "split"):
        values = np.array([getattr(clip, attribute) for clip in clips])
        means = [severity[values == value].mean() for value in np.unique(values)]
        assert np.ptp(means) < 0.03, attribute  # six standard errors of a difference of two such means are wider


def test_no_clip_is_in_two_splits_or_two_worlds() -> None:
    sizes = {"train": 12, "validation": 12, "test": 12, "unlabelled": 12}
    clips = [*sample_world(5, sizes), *sample_world(6, sizes)]
    pictures = {hashlib.sha256(render(clip.plan)[0].tobytes()).hexdigest() for clip in clips}
    assert len(pictures) == len({clip.plan.id for clip in clips}) == 96


def test_a_clip_does_not_depend_on_how_many_others_are_made() -> None:
    assert sample_world(5, {"train": 4, "test": 9})[-1] == sample_world(5, {"train": 30, "test": 9})[-1]


def test_every_wording_of_every_caption_reads_back_as_its_slots() -> None:
    rng = np.random.default_rng(0)
    truth = [Slots(s, c, a, p) for s in world.SUBJECTS for c in world.COLOURS for a in world.ACTIONS for p in world.SCENES]
    texts = [world.caption(slots, rng) for slots in truth]
    assert set(score(texts, truth).values()) == {1.0}
    wordings = {line for text in texts for line in text.splitlines()}
    assert wordings == set(world.all_captions())


def test_a_wrong_word_and_a_missing_section_count_as_wrong() -> None:
    truth = Slots("dog", "red", "left", "porch")
    text = "Subjects: there is a cat.\nAttributes: it looks red.\nScenes: this is the porch."
    assert parse(text) == {"subject": None, "attribute": "red", "action": None, "scene": "porch"}
    assert score([text], [truth]) == {"subject": 0.0, "attribute": 1.0, "action": 0.0, "scene": 1.0, "overall": 0.5}


def test_three_class_labels_need_the_title_and_the_clip() -> None:
    clips = [sample_target(7, "train", index, "miniature-titles") for index in range(3000)]
    labels = [clip.label for clip in clips]
    shares = [labels.count(label) / len(labels) for label in world.TITLE_LABELS]
    assert shares == pytest.approx(world.TITLE_LABEL_SHARES, abs=0.03)
    titles = [clip.context or "" for clip in clips]
    odd = [world.target_label(clip.plan.slots) for clip in clips]
    together = [f"{title} {o}" for title, o in zip(titles, odd, strict=True)]
    assert balanced_accuracy_of_best_rule(together, labels) == pytest.approx(1.0)
    assert max(balanced_accuracy_of_best_rule(values, labels) for values in (titles, odd)) < 0.95


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="miniature-titles"):
        sample_target(0, "train", 0, "nonesuch")


@pytest.mark.parametrize(
    ("action", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1), ("closer", 2, 1), ("away", 2, -1)]
)
def test_the_boxes_move_as_the_action_says(action: str, axis: int, sign: int) -> None:
    plan = world.ClipPlan("x", Slots("bird", "red", action, "garden"), 0.0, (1, 2, 3), "target")
    frames, boxes = render(plan)
    assert frames.shape == (NUM_FRAMES, FRAME_SIDE, FRAME_SIDE, 3)
    x0, y0, x1, y1 = boxes.T
    measured = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0)[axis]
    assert (sign * np.diff(measured) > 0).all()


def test_the_box_holds_the_subject() -> None:
    plan = world.ClipPlan("x", Slots("bird", "red", "circles", "garden"), 0.0, (1, 2, 3), "target")
    frames, boxes = render(plan)
    for frame, (x0, y0, x1, y1) in zip(frames.astype(int), boxes, strict=True):
        rows, columns = np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 90))
        assert len(rows) > 50
        assert columns.min() >= x0 - 1 and columns.max() <= x1 + 1 and rows.min() >= y0 - 1 and rows.max() <= y1 + 1


def test_a_worse_camera_takes_colour_but_never_all_of_it() -> None:
    slots, seed = Slots("bird", "red", "still", "garden"), (1, 2, 3)
    clean, spoiled = (render(world.ClipPlan("x", slots, severity, seed, "target"))[0].astype(float) for severity in (0.0, 1.0))
    redness_clean, redness_spoiled = ((frames[..., 0] - frames[..., 1]).max() for frames in (clean, spoiled))
    x0, y0, x1, y1 = render(world.ClipPlan("x", slots, 0.0, seed, "target"))[1][0].round().astype(int)
    middle = spoiled[:, (y0 + y1) // 2 - 3 : (y0 + y1) // 2 + 3, (x0 + x1) // 2 - 3 : (x0 + x1) // 2 + 3]
    assert redness_clean > 140
    assert middle[..., 0].mean() > middle[..., 1].mean() + 3
    assert redness_spoiled != redness_clean


def test_an_mp4_of_ours_has_eight_frames_at_one_a_second_close_to_the_drawing() -> None:
    frames, _ = render(sample_general(0, "test", 0))
    decoded = decode_mp4(encode_mp4(frames))
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames.astype(int)).mean() < 8


def test_writing_the_same_world_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    clips = sample_world(8, {"train": 3, "test": 2, "unlabelled": 1})
    for folder in ("a", "b"):
        write_world(tmp_path / folder, clips)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) == 6 + 2
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_what_lies_in_memory_does_not_change_a_clip() -> None:
    frames = render(sample_world(8, {"train": 3, "test": 2, "unlabelled": 1})[2].plan)[0]
    encodings = set()
    for value in range(12):  # memory of many sizes, freed with something else in it each time
        del (rubbish := [np.full(size, 21 * value, np.uint8) for size in range(1_000, 200_000, 3_001)])[::2]
        encodings.add(encode_mp4(frames))
        del rubbish
    assert len(encodings) == 1


def test_the_manifest_tells_what_a_labelled_clip_may_tell(tmp_path: Path) -> None:
    clips = sample_world(8, {"train": 3, "validation": 1, "test": 2, "unlabelled": 2})
    path = write_world(tmp_path, clips)
    table = pq.read_table(path)
    check_schema(table.schema, manifest_schema(), str(path))
    rows = table.to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 3 + ["validation"] + ["test"] * 2 + ["train"] * 2
    assert [row["label"] is None for row in rows] == [False] * 6 + [True] * 2
    assert [row["human_text"] is None for row in rows] == [False] * 6 + [True] * 2
    assert all((tmp_path / row["uri"]).stat().st_size > 0 for row in rows)
    truth = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    assert [t["id"] for t in truth] == [row["id"] for row in rows]
    assert all(
        parse(row["human_text"])[name] == t[name] for row, t in zip(rows, truth, strict=True) if row["human_text"] for name in SLOT_NAMES
    )
