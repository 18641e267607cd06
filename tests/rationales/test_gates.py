"""Gates on rationales: golden strings for each, and properties that hold for any text."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniature.base import load_task
from miniature.world import all_captions
from rbft.config import GateName, GatesConfig
from rbft.rationales.gates import GATES, TEXT_GATES, check_rationale, failed, pass_rates, repeated_share, score_corpus
from rbft.records import Rationale

TASK = load_task().model_copy(update={"label_aliases": {"Vague Abnormal": "abnormal"}})
GOOD = "Subjects: there is a dog.\nAttributes: it looks red.\nActions: it climbs up.\nScenes: this is the porch."


def written(text: str | None, finish_reason: str = "stop") -> Rationale:
    return Rationale("v", 0, text, finish_reason=finish_reason, error_code=None if text is not None else "video_decode")


def test_a_good_rationale_passes_all() -> None:
    assert check_rationale(written(GOOD), TASK) == []


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("", ["not_empty", "has_sections"]),
        ("A dog.", ["not_empty", "has_sections"]),
        (GOOD.replace("\nScenes: this is the porch.", ""), ["has_sections"]),
        (GOOD.replace("this is the porch.", ""), ["has_sections"]),
        (GOOD + " it climbs up the wall" * 20, ["not_repeating"]),
        (GOOD + " This is abnormal.", ["names_no_label"]),
        (GOOD + " All of it is Vague  abnormal", ["names_no_label"]),
        (GOOD + "\nI'm sorry, but I can't help with that.", ["no_refusal"]),
        (GOOD + "\nAs an AI, I have no opinion.", ["no_refusal"]),
        (GOOD + "\nI cannot clearly see the video.", ["no_refusal"]),
        (GOOD + "\nNo video was provided.", ["no_refusal"]),
        # What only looks like one of these:
        (GOOD + " An abnormality of gait; a sub-normal pace.", []),
        (GOOD + " The dog cannot reach the door, and a man says he is sorry.", []),
        (GOOD + " It climbs up. It climbs up.", []),
    ],
)
def test_each_gate_stops_what_it_is_for(text: str, failed: list[str]) -> None:
    assert check_rationale(written(text), TASK) == failed


GOES = " goes straight" * 8
FLOOD = "abnormalnormalnormal" * 12


@pytest.mark.parametrize(
    ("text", "finish_reason", "failed"),
    [
        (
            "Subjects: there is a robot.\nAttributes: it looks black.\nActions: it moves to the right.\nScenes: it happens in a porch.",
            "stop",
            [],
        ),
        ("Subjects: there is anormal", "stop", ["has_sections"]),
        ("Subjects: thenormal", "stop", ["not_empty", "has_sections"]),
        (
            "Subjects: the main subject is a bird.\nAttributes: it is black in colour.\nActions: it goes away.\nScenes: it happens in a"
            + FLOOD,
            *("length", ["not_cut_off"]),
        ),
        (f"Subjects: the main subject is a robot{FLOOD}", "length", ["not_cut_off", "has_sections"]),
        (
            "Subjects: the main subject is a bird.\nAttributes: it is black in colour.\nActions: it goes away.\nabnormal goes away.\n"
            "Actions: it goes away.\nScenes: the place is a porch.",
            *("stop", ["names_no_label"]),
        ),
        (
            f"Subjects: there is a robot.\nAttributes: it is black in colour.\nActions: it{GOES}.\nActions: the place is a robot.\n"
            "Attributes: it is black in view.\nActions: it gets away from the camera.\nScenes: the place is a porch.",
            *("stop", ["not_repeating"]),
        ),
        (
            f"Subjects: the main subject is a bird.\nAttributes: it is black in colour.\nActions: it{GOES} goes from right to the view.\n"
            "Attributes: it is black in circles.\nActions: it goes away.\nScenes: it happens in a it happens in a bird.\n"
            "Attributes: it is black in circles.\nActions:",
            *("length", ["not_cut_off", "not_repeating"]),
        ),
    ],
)
def test_what_the_miniature_has_really_written(text: str, finish_reason: str, failed: list[str]) -> None:
    """From its rationales of the two experiments: of 9,728 these are the kinds there are."""
    assert check_rationale(written(text, finish_reason), TASK) == failed


def test_a_text_cut_by_the_token_limit_does_not_pass() -> None:
    assert check_rationale(written(GOOD, "length"), TASK) == ["not_cut_off"]


def test_an_error_row_passes_nothing() -> None:
    assert check_rationale(written(None), TASK) == ["error"]


def test_rates_count_error_rows_and_all_gates_together() -> None:
    rows = [written(GOOD), written(GOOD, "length"), written("A dog."), written(None)]
    rates = pass_rates([check_rationale(row, TASK) for row in rows], TEXT_GATES)
    assert rates["all"] == 0.25 and rates["not_cut_off"] == 0.5 and rates["no_refusal"] == 0.75 and rates["has_sections"] == 0.5
    assert list(rates) == [*TEXT_GATES, "all"] and pass_rates([], TEXT_GATES) == {}


def test_every_true_caption_of_the_miniature_passes() -> None:
    lines = [[line for line in all_captions() if line.startswith(dimension.heading)] for dimension in TASK.dimensions]
    for number in range(max(map(len, lines))):
        text = "\n".join(of_heading[number % len(of_heading)] for of_heading in lines)
        assert check_rationale(written(text), TASK) == [], text


@given(st.text())
def test_any_text_gets_an_answer(text: str) -> None:
    assert set(check_rationale(written(text), TASK, "abnormal")) <= set(TEXT_GATES)
    assert 0 <= repeated_share(text) < 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=60))
def test_saying_it_twice_never_lowers_the_repeated_share(words: list[str]) -> None:
    text = " ".join(words)
    assert repeated_share(f"{text} {text}") >= repeated_share(text)


def test_a_configuration_names_the_gates_there_are() -> None:
    assert get_args(GateName) == tuple(GATES) and GatesConfig().drop == TEXT_GATES


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        ("There are no signs of any concern.", True),
        ("Nothing unusual happens.", True),
        ("He does not show any threatening behaviour.", True),
        ("She doesn't look suspicious at all.", True),
        ("The yard is quiet, without any immediate danger to the house.", True),
        ("A delivery, with no apparent threat.", True),
        ("Nothing out of the ordinary.", True),
        # What only looks like a denial:
        ("No one notices the danger.", False),
        ("A man with a suspicious bag; nobody is at home.", False),
        ("It is not a cat but a dangerous snake.", False),
        ("There is no light. A suspicious figure comes closer.", False),
    ],
)
def test_a_text_that_denies_any_concern_contradicts_a_label_of_concern_only(text: str, denies: bool) -> None:
    told = GOOD + " " + text
    assert check_rationale(written(told), TASK, "abnormal") == (["agrees_with_label"] if denies else [])
    assert check_rationale(written(told), TASK, "normal") == check_rationale(written(told), TASK) == []


def test_of_near_duplicates_the_first_passes() -> None:
    words = [f"w{number}" for number in range(200)]
    other = random.Random(0).sample(words, 200)
    almost = [*words[:-1], "else"]
    scores = [found["no_near_duplicate"] for found in score_corpus([" ".join(text) for text in (words, other, almost, words)])]
    assert scores[:2] == [0.0, 0.0] and scores[2] > 0.9 and scores[3] == 1.0
    assert [failed(found, ["no_near_duplicate"]) for found in score_corpus(["a b c d", "a b c d"])] == [[], ["no_near_duplicate"]]


def test_a_length_is_unusual_among_the_others_only() -> None:
    usual = ["word " * count for count in (40, 42, 45, 38, 41, 44, 39, 43)]
    *inside, short, long = score_corpus([*usual, "word", "word " * 400])
    assert all(not failed(found, ["usual_length"]) for found in inside)
    assert failed(short, ["usual_length"]) == failed(long, ["usual_length"]) == ["usual_length"]
    same = score_corpus(["one two three"] * 5 + ["one two three four"])
    assert not any(failed(found, ["usual_length"]) for found in same[:5])


@settings(max_examples=30)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_corpus_gets_scores_in_bounds(texts: list[str]) -> None:
    for found in score_corpus(texts):
        assert 0 <= found["no_near_duplicate"] <= 1 and found["usual_length"] >= 0


def test_no_scores_are_an_error_row() -> None:
    assert failed({}) == ["error"]
