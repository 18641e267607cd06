"""Gates: is a rationale fit to learn from? Each looks at the text alone, so that all of them can be run again on what is on disk.

    check_rationale(rationale, task) -> the names of the gates it does not pass

Covered: empty, cut off, repeating, refusal, sections missing or empty, a label given away. Not covered: whether what it says is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from rbft.records import Rationale
from rbft.task import Task

MIN_WORDS = 3
"""Fewer say nothing about four dimensions."""
REPEATED_SHARE = 0.3
"""Of a text's word 4-grams that stand in it before; greedy decoding of a small model loops, and then nearly all of them do."""
_NGRAM = 4

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)"
    r"|i (?:can(?:no|')t|won't) (?:\w+ ){0,2}(?:help|assist|describe|analy[sz]e|see|view|watch|provide)"
    r"|as an ai\b|(?:no|not any) video (?:was|is|has been) (?:provided|given|attached))",
    re.IGNORECASE,
)
"""How instruction-tuned models begin to decline."""


def check_rationale(rationale: Rationale, task: Task) -> list[str]:
    """The gates of `GATES` that `rationale` does not pass, in their order. An error row passes none that could be asked: ["error"]."""
    if rationale.text is None:
        return ["error"]
    return [name for name, passes in GATES.items() if not passes(rationale, rationale.text, task)]


def pass_rates(rationales: Iterable[Rationale], task: Task) -> dict[str, float]:
    """Gate -> share of the rationales that pass it, and "all"; error rows pass none. Empty for no rationales."""
    failed = [check_rationale(rationale, task) for rationale in rationales]
    if not failed:
        return {}
    rates = {name: sum(name not in found and "error" not in found for found in failed) / len(failed) for name in GATES}
    return rates | {"all": sum(not found for found in failed) / len(failed)}


def repeated_share(text: str) -> float:
    """Share of word 4-grams in `text` that stood in it before; 0 for a text of fewer than five words."""
    words = text.lower().split()
    ngrams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if len(ngrams) > 1 else 0.0


def names_label(text: str, task: Task) -> bool:
    """Whether a label of the task, or an annotation's other word for one, stands in `text` as whole words: the answer, not the evidence."""
    names = [*task.labels, *task.label_aliases]
    alternatives = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
    return re.search(rf"(?<![\w-])(?:{alternatives})(?![\w-])", text, re.IGNORECASE) is not None


GATES: dict[str, Callable[[Rationale, str, Task], bool]] = {
    "not_empty": lambda _, text, __: len(text.split()) >= MIN_WORDS,
    "not_cut_off": lambda rationale, _, __: rationale.finish_reason != "length",
    "not_repeating": lambda _, text, __: repeated_share(text) <= REPEATED_SHARE,
    "no_refusal": lambda _, text, __: _REFUSAL.search(text) is None,
    "has_sections": lambda _, text, task: all(task.parse_sections(text).get(dimension.heading) for dimension in task.dimensions),
    "names_no_label": lambda _, text, task: not names_label(text, task),
}
"""Gate -> whether a rationale with a text passes it."""
