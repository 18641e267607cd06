"""Dashboard and alerts ask only for metrics that somebody makes: ours, found in the sources, or Ray's, found in Ray's own dashboards."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "monitoring"
WORDS = {"by", "and", "or", "unless", "offset", "ignoring", "on", "group_left", "group_right", "bool", "inf", "nan"}


@cache
def _ours() -> frozenset[str]:
    """Those that Ray exports, as Prometheus has them: Ray puts `ray_` before all, and `_total` behind counters."""
    found = set()
    sources = [path.read_text(encoding="utf-8") for package in ("ray_jobs", "serve") for path in (REPOSITORY / package).rglob("*.py")]
    for source in (source for source in sources if "prometheus_client" not in source):  # the service's `/metrics` is not scraped here
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Counter", "Gauge", "Histogram"):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add("ray_" + first.value + {"Counter": "_total", "Histogram": "_bucket"}.get(node.func.id, ""))
    return frozenset(found)


@cache
def _rays() -> frozenset[str]:
    """Metrics in the dashboards that come with the installed Ray, and Prometheus's own `up`."""
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*_panels.py"))
    return frozenset(re.findall(r"\b(?:ray|autoscaler)_[a-z0-9_]+", text)) | {"up"}


def metrics_in(expression: str) -> set[str]:
    """The names of metrics in PromQL; their labels, functions, durations and numbers left out."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|ignoring|on|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w)(?!\s*\()", bare)
    return {name for name in names if name not in WORDS}


@cache
def _dashboard() -> dict[str, Any]:
    content = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _panel_expressions() -> list[str]:
    return [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", [])]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def test_the_names_of_metrics_are_found_in_an_expression() -> None:
    expression = (
        'sum by (run, le) (rate(ray_a_total{code!="ray_b"}[5m] offset 10m)) / ignoring (code) group_left sum(ray_c) > 1.2 and up == 0'
    )
    assert metrics_in(expression) == {"ray_a_total", "ray_c", "up"}


@pytest.mark.parametrize("expression", [*_panel_expressions(), *(rule["expr"] for rule in _rules())])
def test_every_metric_that_is_asked_for_is_made_by_somebody(expression: str) -> None:
    names = metrics_in(expression)
    assert names
    assert names - _ours() - _rays() == set()


def test_every_metric_of_ours_has_a_panel_and_the_prefix_of_its_part() -> None:
    shown = {name for expression in _panel_expressions() for name in metrics_in(expression)}
    assert _ours() - shown == set()
    assert all(re.match(r"ray_rbft_(inference|training)_[a-z_]+$", name) for name in _ours())


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    places: set[tuple[int, int]] = set()
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & places
        places |= cells
        assert panel["type"] == "row" or panel["description"]
    ids = [panel["id"] for panel in _dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_alert_has_a_case_in_which_it_is_raised_and_one_in_which_it_is_not() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    cases = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in _rules()}
    assert {name for name, is_raised in cases if is_raised} == alerts
    assert {name for name, is_raised in cases if not is_raised} == alerts


def test_every_alert_is_explained() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = [rule["alert"] for rule in _rules() if f"### {rule['alert']}" not in text]
    assert missing == []
    assert all(rule["labels"]["severity"] in ("page", "warn") and rule["annotations"]["summary"] for rule in _rules())
