"""The paper's tables and figures with ours as HTML pages: one file each that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from rbft.evaluation.failures import FailureAnalysis
from rbft.evaluation.figure2 import Figure2
from rbft.evaluation.html_pages import PAGES
from rbft.evaluation.reproduction import PaperTable


def render_table(table: PaperTable, analyses: Mapping[str, FailureAnalysis]) -> str:
    """The page of `table`; `analyses`: backbone -> who fails where."""
    return PAGES.get_template("reproduction.html.j2").render(table=table, analyses=analyses)


def render_figure2(figure: Figure2) -> str:
    """The page of `figure`."""
    return PAGES.get_template("figure2.html.j2").render(figure=figure)
