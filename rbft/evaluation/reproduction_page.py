"""The paper's tables and figures with ours as HTML pages: one file each that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbft.evaluation.failures import FailureAnalysis
from rbft.evaluation.figure2 import Figure2
from rbft.evaluation.html_pages import PAGES
from rbft.evaluation.reproduction import PaperTable


@dataclass(frozen=True)
class Made:
    """How one run of a page was made."""

    command: str
    facts: Mapping[str, str]
    """Folder, commit, seed."""
    versions: Mapping[str, str]
    artifacts: Mapping[str, str]
    """Name -> place in the run's folder."""


def render_table(table: PaperTable, analyses: Mapping[str, FailureAnalysis], provenance: Mapping[str, Made]) -> str:
    """The page of `table`; `analyses`: what they are about -> who fails where; `provenance`: run -> how it was made."""
    return PAGES.get_template("reproduction.html.j2").render(table=table, analyses=analyses, provenance=provenance)


def render_figure2(figure: Figure2, provenance: Mapping[str, Made]) -> str:
    """The page of `figure`; `provenance` likewise."""
    return PAGES.get_template("figure2.html.j2").render(figure=figure, provenance=provenance)
