"""`scripts/audit.py`: what it makes of pip-audit's output. That the audit was not done is never told as if it had been."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "scripts" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _output(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


SOUND = {"name": "ray", "version": "2.60.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
VULNERABLE = {
    "name": "pillow",
    "version": "13.0.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["13.0.1"], "aliases": [], "description": ""}],
}


def test_versions_without_a_known_vulnerability_are_clean(audit: ModuleType) -> None:
    assert audit.judge(_output(SOUND), "") == (0, ["1 packages, no known vulnerability"])


def test_a_vulnerability_fails_and_says_which_version_mends_it(audit: ModuleType) -> None:
    code, lines = audit.judge(_output(SOUND, SKIPPED, VULNERABLE), "")
    assert (code, lines) == (1, ["pillow 13.0.0: PYSEC-1, mended in 13.0.1"])


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        ("", "Traceback …\nConnectionError: Failed to resolve the index's name"),
        (_output(SOUND, SKIPPED), ""),  # a mirror that has packages and knows nothing about them
        (_output(), ""),
        ("{}", ""),
    ],
)
def test_an_audit_that_could_not_be_done_says_so_and_is_no_success(audit: ModuleType, stdout: str, stderr: str) -> None:
    code, lines = audit.judge(stdout, stderr)
    assert code == 3
    assert lines[0].startswith("NOT DONE: ") and "make audit" in lines[1]


def test_it_looks_up_the_pinned_versions_of_both_flavours(audit: ModuleType, repository: Path) -> None:
    command = audit.audit_command()
    assert command[command.index("--requirement") + 1] == "constraints.txt"
    pinned = (repository / "constraints.txt").read_text()
    assert "\nvllm==" in pinned and "\nvllm-cpu==" in pinned
