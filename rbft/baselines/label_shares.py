"""Probabilities of labels from the likely tokens that a server tells beside each token of its answer (`top_logprobs`).

Walks along the label that was written, and gives each token that could have stood there instead to the one label it would have begun,
in whatever spelling. What leads to no label, or to several, is left out, and the rest normalised. So this is not quite the likelihood of
`rbft.engines.labels`: of what comes after another first token nothing is known, and a label that is not among the likely tokens gets 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rbft.engines.openai_answer import TokenLogprob

_NO_LETTERS = re.compile(r"^[\W_]+")


def label_shares(tokens: Sequence[TokenLogprob], written: str, labels: Sequence[str]) -> dict[str, float]:
    """Label -> probability, adding up to 1, where the text of `tokens` names the label `written`; empty if it cannot be found there.

    Text before the label is taken as given: the probabilities are those of what follows it.
    """
    text = "".join(token.token for token in tokens).lower()
    words = r"\s+".join(map(re.escape, written.split()))
    found = re.search(rf"(?<![\w-]){words}(?![\w-])", text)
    if found is None:
        return {}
    masses = dict.fromkeys(labels, 0.0)
    end, path, prefix = 0, 1.0, ""
    for token in tokens:
        end += len(token.token)
        if end <= found.start():
            continue
        for other in token.top_logprobs:
            if other.token != token.token and (label := _begun(prefix, other.token, labels)) is not None:
                masses[label] += path * math.exp(other.logprob)
        path *= math.exp(token.logprob)
        prefix = _joined(prefix, token.token[found.start() - end :] if not prefix else token.token)
        if end >= found.end():
            break
    masses[written] += path
    total = math.fsum(masses.values())
    return {label: mass / total for label, mass in masses.items()} if total > 0 else {}


def _begun(prefix: str, token: str, labels: Sequence[str]) -> str | None:
    """The one label that `prefix` and `token` are the beginning of, or that they begin with; None if there is none or several."""
    text = _joined(prefix, token)
    begun = [label for label in labels if text and (label.startswith(text) or re.match(rf"{re.escape(label)}(?!\w)", text))]
    return begun[0] if len(begun) == 1 else None


def _joined(prefix: str, token: str) -> str:
    """Both in the letters of labels: lower case, without what stands before the first letter, one space between words."""
    return re.sub(r"\s+", " ", prefix + token.lower() if prefix else _NO_LETTERS.sub("", token.lower()))
