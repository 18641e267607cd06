"""The paper's tables and figures with ours as HTML pages: one file each that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from rbft.evaluation.failures import FailureAnalysis
from rbft.evaluation.figure2 import Figure2
from rbft.evaluation.reproduction import PaperTable
from rbft.evaluation.tables import interval, percent, system_title
from rbft.pages import html_environment

_ENVIRONMENT = html_environment("rbft.evaluation", system_title=system_title, percent=percent, interval=interval)


def render_table(table: PaperTable, analyses: Mapping[str, FailureAnalysis]) -> str:
    """The page of `table`; `analyses`: backbone -> who fails where."""
    return _ENVIRONMENT.get_template("reproduction.html.j2").render(table=table, analyses=analyses)


def render_figure2(figure: Figure2) -> str:
    """The page of `figure`."""
    return _ENVIRONMENT.get_template("figure2.html.j2").render(figure=figure)
