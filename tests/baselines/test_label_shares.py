"""Probabilities of labels from the likely tokens of an answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.baselines.label_shares import label_shares
from rbft.engines.openai_answer import TokenLogprob, TopLogprob

LABELS = ("normal", "abnormal")


def token(text: str, probability: float, **others: float) -> TokenLogprob:
    """A token of an answer with its probability, and those that could have stood there; "_" in a name is a space."""
    likely = [TopLogprob(token=other.replace("_", " "), logprob=math.log(share)) for other, share in others.items()]
    return TokenLogprob(
        token=text, logprob=math.log(probability), top_logprobs=[TopLogprob(token=text, logprob=math.log(probability)), *likely]
    )


def test_every_spelling_of_a_label_counts_for_it() -> None:
    shares = label_shares([token("normal", 0.5, Normal=0.1, _normal=0.1, ab=0.2, Abnormal=0.05)], "normal", LABELS)
    assert shares == pytest.approx({"normal": 0.7 / 0.95, "abnormal": 0.25 / 0.95})


def test_what_leads_to_no_label_is_left_out() -> None:
    shares = label_shares([token("normal", 0.4, The=0.4, abnormal=0.1, normally=0.05)], "normal", LABELS)
    assert shares == pytest.approx({"normal": 0.8, "abnormal": 0.2})


def test_a_label_in_several_tokens_has_the_product_of_them() -> None:
    shares = label_shares([token("ab", 0.6, normal=0.4), token("normal", 0.9, solutely=0.1), token(".", 1.0)], "abnormal", LABELS)
    assert shares == pytest.approx({"abnormal": 0.54 / 0.94, "normal": 0.4 / 0.94})


def test_text_before_the_label_is_taken_as_given() -> None:
    tokens = [token("Answer", 0.3, normal=0.7), token(": **", 1.0), token("Ab", 0.5, Normal=0.5), token("normal", 1.0), token("**", 1.0)]
    assert label_shares(tokens, "abnormal", LABELS) == pytest.approx({"normal": 0.5, "abnormal": 0.5})


def test_labels_of_several_words_share_the_beginning_and_part_where_they_differ() -> None:
    labels = ("not hateful", "not offensive", "hateful")
    tokens = [token("Not", 0.8, hate=0.2), token(" off", 0.75, _hate=0.25), token("ensive", 1.0)]
    shares = label_shares(tokens, "not offensive", labels)
    assert shares == pytest.approx({"not hateful": 0.2, "not offensive": 0.6, "hateful": 0.2})


def test_a_token_that_could_begin_several_labels_counts_for_none() -> None:
    labels = ("hateful", "harmless")
    assert label_shares([token("hate", 0.5, ha=0.4, harm=0.1), token("ful", 1.0)], "hateful", labels) == pytest.approx(
        {"hateful": 0.5 / 0.6, "harmless": 0.1 / 0.6}
    )


def test_a_label_that_its_tokens_do_not_hold_has_no_probabilities() -> None:
    assert label_shares([token("The", 1.0)], "normal", LABELS) == {}
    assert label_shares([], "normal", LABELS) == {}
    assert label_shares([token("abnormal", 1.0)], "normal", LABELS) == {}  # "normal" is not a word of it


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), st.sampled_from(["", " ", "**", '"', "Answer: "]))
def test_they_are_the_masses_of_the_first_tokens_and_add_up_to_one(masses: list[float], before: str) -> None:
    written, other, spelling, stranger = (mass / sum(masses) for mass in masses)
    first = token(f"{before}normal", written, **{f"{before}abnormal".replace(" ", "_"): other, "NORMAL": spelling, "dog": stranger})
    shares = label_shares([first, token("<|im_end|>", 1.0)], "normal", LABELS)
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    known = written + spelling + (0.0 if ":" in before else other)  # a token like "Answer: abnormal" is no beginning of a label
    assert shares["normal"] == pytest.approx((written + spelling) / known)
