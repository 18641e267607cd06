"""Which of a video's draws becomes its rationale: the first, the first that passes the gates, or the best of several.

    paper, filter   one draw
    resample        again with another seed while a draw does not pass; at last with the label as a hint, as STaR does (Zelikman 2022)
    best_of_n       n draws; the one that fails the fewest gates

Only gates that one text decides by itself can ask for another draw. What is not kept is noted in the kept one's provenance, with why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

from rbft.config import GatesConfig
from rbft.rationales.gates import TEXT_GATES, failed, score_text
from rbft.records import Rationale
from rbft.task import Task


@dataclass(frozen=True)
class Draw:
    """How a rationale is asked for."""

    sample: int
    """0 for a video's first draw; with the run's seed and the video's id it determines the draw's seed."""
    temperature: float
    is_hinted: bool = False
    """Whether the prompt gives the label away."""


async def draw_rationale(
    ask: Callable[[Draw], Awaitable[Rationale]], task: Task, label: str | None, temperature: float, gates: GatesConfig
) -> Rationale:
    """The video's rationale by `gates.profile`. `temperature` is the first draw's; a video without a `label` is never hinted at.

    `ask` gives the rationale of one draw; what it raises is raised.
    """
    deciding = [gate for gate in gates.drop if gate in TEXT_GATES]

    def faults(rationale: Rationale) -> list[str]:
        return failed(score_text(rationale, task, label), deciding)

    drawn = [await ask(Draw(0, temperature))]
    if gates.profile == "best_of_n":
        others = (Draw(sample, gates.redraw_temperature) for sample in range(1, gates.num_samples))
        drawn += await asyncio.gather(*map(ask, others))  # after the first, which puts the video into the engine's prefix cache
    elif gates.profile == "resample":
        for draw in _redraws(gates, can_hint=label is not None):
            if not faults(drawn[-1]):
                break
            drawn.append(await ask(draw))
    kept = min(drawn, key=lambda each: (len(faults(each)), each.sample))
    others_said = [
        {"sample": each.sample, "failed": faults(each), "label_in_prompt": each.provenance["label_in_prompt"], "text": each.text}
        for each in drawn
        if each is not kept
    ]
    return replace(kept, provenance=kept.provenance | {"other_draws": others_said}) if others_said else kept


def _redraws(gates: GatesConfig, *, can_hint: bool) -> Iterator[Draw]:
    for sample in range(1, gates.num_redraws + 1):
        yield Draw(sample, gates.redraw_temperature)
    if gates.hint and can_hint:
        yield Draw(gates.num_redraws + 1, gates.redraw_temperature, is_hinted=True)
