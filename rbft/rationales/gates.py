"""Gates: is a rationale fit to learn from? Each gives a score and a limit; what scores above the limit does not pass.

    score_text(rationale, task, label) -> gate -> score        of one rationale, from its text alone
    score_corpus(texts)                -> gate -> scores       of each among the others
    failed(scores)                     -> the gates it does not pass

Covered: empty, cut off, repeating, refusal, sections missing or empty, a label given away, the label contradicted, near-duplicates of
other rationales, unusual length. Not covered: whether what it says is true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rbft.records import Rationale
from rbft.task import Task

MIN_WORDS = 3
"""Fewer say nothing about four dimensions."""
_REPEATED_WORDS = 4
_SHINGLE_WORDS = 3
_NUM_PERMUTATIONS = 128
"""Of a MinHash: its estimate of a Jaccard similarity has a standard error of at most 0.045."""
_LEAST_SPREAD = 0.1
"""Of log lengths: what is within 40 % of the others' length is no outlier, however alike they are."""

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)"
    r"|i (?:can(?:no|')t|won't) (?:\w+ ){0,2}(?:help|assist|describe|analy[sz]e|see|view|watch|provide)"
    r"|as an ai\b|(?:no|not any) video (?:was|is|has been) (?:provided|given|attached))",
    re.IGNORECASE,
)
"""How instruction-tuned models begin to decline."""

_DENIAL = re.compile(
    r"(?:\b(?:no(?! one\b)|not|nothing|without|lacks?|neither|nor)|n['’]t)(?:[ -]+(?!but\b|however\b)\w+){0,5}?[ -]+"
    r"(?:concern\w*|threat\w*|danger\w*|suspicious\w*|unusual\w*|alarming|hazard\w*|harmful|hateful|offensive|violen\w+"
    r"|out of the ordinary)",
    re.IGNORECASE,
)
"""How a text says that all is well: "no signs of any concern", "nothing unusual", "does not show any threatening behaviour"."""


@dataclass(frozen=True)
class Gate:
    """What is looked for, and from which score on it counts."""

    fault: str
    """What is wrong with a rationale that does not pass, in words."""
    limit: float = 0.0
    """The largest score that passes."""


GATES: dict[str, Gate] = {
    "not_empty": Gate("fewer than three words"),
    "not_cut_off": Gate("cut off by the token limit"),
    "not_repeating": Gate("share of its word 4-grams that stood in it before", 0.3),
    "no_refusal": Gate("declines to answer"),
    "has_sections": Gate("headings that are missing or have nothing below them"),
    "names_no_label": Gate("gives a label away"),
    "agrees_with_label": Gate("denies any concern about a video whose label is one of task.concern_labels"),
    "no_near_duplicate": Gate("estimated Jaccard similarity to an earlier rationale", 0.9),
    "usual_length": Gate("how far its length is from the others', in robust standard deviations of its logarithm", 3.5),
}
"""In the order in which they are told. 3.5 is what Iglewicz and Hoaglin (1993) advise for such scores."""

TEXT_GATES = tuple(GATES)[:7]
"""Those that one text decides by itself."""

_SCORES: dict[str, Callable[[Rationale, str, Task, str | None], float]] = {
    "not_empty": lambda _, text, __, ___: len(text.split()) < MIN_WORDS,
    "not_cut_off": lambda rationale, _, __, ___: rationale.finish_reason == "length",
    "not_repeating": lambda _, text, __, ___: repeated_share(text),
    "no_refusal": lambda _, text, __, ___: is_refusal(text),
    "has_sections": lambda _, text, task, __: _missing_sections(text, task),
    "names_no_label": lambda _, text, task, __: names_label(text, task),
    "agrees_with_label": lambda _, text, task, label: label in task.concern_labels and _DENIAL.search(text) is not None,
}


def is_refusal(text: str) -> bool:
    """Whether `text` declines to answer, in the words that models have for it."""
    return _REFUSAL.search(text) is not None


def score_text(rationale: Rationale, task: Task, label: str | None = None) -> dict[str, float]:
    """Gate of `TEXT_GATES` -> score. `label` is the video's, None where unknown. Empty for an error row, which has no text."""
    if rationale.text is None:
        return {}
    return {name: float(score(rationale, rationale.text, task, label)) for name, score in _SCORES.items()}


def score_corpus(texts: Sequence[str]) -> list[dict[str, float]]:
    """For each text, the scores of the gates that compare it with the others. Of near-duplicates the first passes."""
    lengths = [math.log(1 + len(text.split())) for text in texts]
    middle = median(lengths) if lengths else 0.0
    spread = max(_LEAST_SPREAD, 1.4826 * median(abs(length - middle) for length in lengths)) if lengths else 1.0
    similarities = _similarity_to_earlier(texts)
    return [
        {"no_near_duplicate": similarity, "usual_length": abs(length - middle) / spread}
        for similarity, length in zip(similarities, lengths, strict=True)
    ]


def failed(scores: Mapping[str, float], gates: Iterable[str] = tuple(GATES)) -> list[str]:
    """Those of `gates` that a rationale with these scores does not pass, in their order; ["error"] where there are no scores."""
    if not scores:
        return ["error"]
    wanted = set(gates)
    return [name for name, gate in GATES.items() if name in wanted and scores.get(name, 0.0) > gate.limit]


def check_rationale(rationale: Rationale, task: Task, label: str | None = None) -> list[str]:
    """The gates of `TEXT_GATES` that `rationale` does not pass, in their order; ["error"] for an error row."""
    return failed(score_text(rationale, task, label))


def pass_rates(failed: Sequence[Collection[str]], gates: Iterable[str]) -> dict[str, float]:
    """Gate of `gates` -> share of rationales that pass it, and "all", from the gates that each one fails; error rows pass none. Empty for
    no rationales."""
    if not failed:
        return {}
    rates = {name: sum(name not in each and "error" not in each for each in failed) / len(failed) for name in gates}
    return rates | {"all": sum(not each for each in failed) / len(failed)}


def repeated_share(text: str) -> float:
    """Share of word 4-grams in `text` that stood in it before; 0 for a text of fewer than five words. Greedy decoding of a small model
    loops, and then nearly all of them do."""
    ngrams = _ngrams(text, _REPEATED_WORDS)
    return 1 - len(set(ngrams)) / len(ngrams) if len(ngrams) > 1 else 0.0


def names_label(text: str, task: Task) -> bool:
    """Whether a label of the task, or an annotation's other word for one, stands in `text` as whole words: the answer, not the evidence."""
    names = [*task.labels, *task.label_aliases]
    alternatives = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
    return re.search(rf"(?<![\w-])(?:{alternatives})(?![\w-])", text, re.IGNORECASE) is not None


def _missing_sections(text: str, task: Task) -> int:
    sections = task.parse_sections(text)
    return sum(not sections.get(dimension.heading) for dimension in task.dimensions)


def _similarity_to_earlier(texts: Sequence[str]) -> list[float]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=GATES["no_near_duplicate"].limit, num_perm=_NUM_PERMUTATIONS)
    signatures: dict[int, MinHash] = {}
    similarities = []
    for number, text in enumerate(texts):
        shingles = {" ".join(ngram).encode() for ngram in _ngrams(text, _SHINGLE_WORDS)} or {text.lower().encode()}
        signature = MinHash(num_perm=_NUM_PERMUTATIONS)
        signature.update_batch(list(shingles))
        earlier = {similarity for other in index.query(signature) if (similarity := signature.jaccard(signatures[other]))}
        similarities.append(max(earlier, default=0.0))
        index.insert(number, signature)
        signatures[number] = signature
    return similarities


def _ngrams(text: str, num_words: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)]
