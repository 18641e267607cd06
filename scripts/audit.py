"""`make audit`: known vulnerabilities of the pinned versions, and a bill of materials of this environment.

    build/sbom.json      CycloneDX, made from what is installed; needs no network
    pip-audit            asks PyPI's vulnerability service about every line of constraints.txt

Exit code 0: every version was looked up and none is known to be vulnerable. 1: some are. 3: NOT DONE, as the service could not be reached
or knew nothing of some packages, as behind a mirror of PyPI; that is no success.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BILL = REPOSITORY / "build" / "sbom.json"
ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that do not concern us: id -> why."""

CLEAN, VULNERABLE, NOT_DONE = 0, 1, 3


def main() -> int:
    write_bill()
    done = subprocess.run(audit_command(), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    code, lines = judge(done.stdout, done.stderr)
    print("\n".join(f"audit: {line}" for line in lines))
    return code


def write_bill() -> None:
    """Raises `CalledProcessError` if it cannot be made."""
    BILL.parent.mkdir(exist_ok=True)
    command = ["environment", "--pyproject", "pyproject.toml", "--output-reproducible", "--of", "JSON", "-o", str(BILL), sys.executable]
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *command], cwd=REPOSITORY, check=True)
    print(f"audit: {BILL.relative_to(REPOSITORY)} lists {len(json.loads(BILL.read_text())['components'])} packages")


def audit_command() -> list[str]:
    # The constraints, and not the environment: they also name what the other flavour, CPU or GPU, installs.
    arguments = ["--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    return [sys.executable, "-m", "pip_audit", *arguments, *(word for name in ACCEPTED for word in ("--ignore-vuln", name))]


def judge(stdout: str, stderr: str) -> tuple[int, list[str]]:
    """Exit code and what to say of the output of `audit_command`."""
    try:
        packages: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300]
        return NOT_DONE, [f"NOT DONE: {why}", "run `make audit` where PyPI can be reached"]
    found = [
        f"{package['name']} {package['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for package in packages
        for known in package.get("vulns", ())
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if found:
        return VULNERABLE, found
    if skipped or not packages:
        some = ", ".join(skipped[:5])
        return NOT_DONE, [
            f"NOT DONE: nothing is known of {len(skipped)} of {len(packages)} packages ({some}, …)",
            "this index has no vulnerability service; run `make audit` where PyPI can be reached",
        ]
    return CLEAN, [f"{len(packages)} packages, no known vulnerability"]


if __name__ == "__main__":
    sys.exit(main())
