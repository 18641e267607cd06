"""One of the paper's tables with our rows as an HTML page: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from rbft.evaluation.failures import FailureAnalysis
from rbft.evaluation.reproduction import PaperTable
from rbft.evaluation.tables import system_title
from rbft.pages import html_environment


def render_reproduction(table: PaperTable, analyses: Mapping[str, FailureAnalysis]) -> str:
    """The page of `table`; `analyses`: backbone -> who fails where."""
    environment = html_environment("rbft.evaluation", system_title=system_title)
    return environment.get_template("reproduction.html.j2").render(table=table, analyses=analyses)
