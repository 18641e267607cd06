"""The videos behind a confusion matrix: which ones lie in each of its cells, and which of them a report shows with frames.

In a cell the least certain come first. Of all cells, those of the main system and those of mistakes are served first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rbft.evaluation.metrics import Mode, answer, answered_modes, confidence
from rbft.records import Prediction


@dataclass(frozen=True)
class Cell:
    """One cell that holds videos, of the matrix of one system in one mode."""

    system: str
    mode: Mode
    row: int
    """Index of the true label in the task's labels."""
    column: int
    """Index of the answered label; the number of labels is no answer."""
    matrix: str
    """What tells the matrix from others in the page: letters, digits and hyphens, whatever the system is called."""
    ids: tuple[str, ...]
    """All its videos, the least certain first."""
    is_main: bool
    """Whether the matrix is the one that the system is judged by."""

    @property
    def anchor(self) -> str:
        """The cell's name in the page."""
        return f"cell-{self.matrix}-{self.row}-{self.column}"

    @property
    def is_wrong(self) -> bool:
        return self.row != self.column


def make_cells(predictions: Mapping[str, Sequence[Prediction]], labels: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of all matrices: systems as given, each by label likelihood and by text where it has those, row by row."""
    cells = []
    columns: list[str | None] = [*labels, None]
    for number, (system, rows) in enumerate(predictions.items()):
        modes = answered_modes(rows)
        for mode in modes:
            found: dict[tuple[int, int], list[Prediction]] = {}
            for prediction in rows:
                if prediction.label is not None:
                    place = (labels.index(prediction.label), columns.index(answer(prediction, mode)))
                    found.setdefault(place, []).append(prediction)
            for (row, column), members in sorted(found.items()):
                members.sort(key=lambda prediction: (confidence(prediction, mode) or 0.0, prediction.id))
                ids = tuple(prediction.id for prediction in members)
                cells.append(Cell(system, mode, row, column, f"{number}-{mode}", ids, mode == modes[0]))
    return tuple(cells)


def choose_videos(cells: Iterable[Cell], main_system: str, count: int) -> list[str]:
    """Ids of at most `count` videos to show: of every cell in turn its next one, until there are enough.

    A turn begins with the main system's mistakes, then what it gets right, then the mistakes of the others. Matrices by generated text
    beside likelihoods have no turn.
    """
    in_turn = sorted((cell for cell in cells if cell.is_main), key=lambda cell: (cell.system != main_system, not cell.is_wrong))
    deepest = max((len(cell.ids) for cell in in_turn), default=0)
    chosen: dict[str, None] = {}
    for rank in range(deepest):
        for cell in in_turn:
            if len(chosen) >= count:
                return list(chosen)
            if rank < len(cell.ids):
                chosen.setdefault(cell.ids[rank])
    return list(chosen)
