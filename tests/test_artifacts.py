"""Fingerprints and markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft import artifacts
from rbft.errors import ArtifactError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def reversed_order(value: Any) -> Any:
    """`value` with the keys of all its mappings the other way round."""
    if isinstance(value, dict):
        return {key: reversed_order(value[key]) for key in reversed(value)}
    return [reversed_order(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    assert artifacts.fingerprint(reversed_order(value)) == artifacts.fingerprint(value)


@given(json_values, json_values)
def test_values_that_differ_have_fingerprints_that_differ(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (artifacts.fingerprint(one) == artifacts.fingerprint(other)) == same


def test_the_order_of_a_list_counts() -> None:
    assert artifacts.fingerprint([1, 2]) != artifacts.fingerprint([2, 1])


def test_a_fingerprint_stays_what_it_is() -> None:
    """Everything on disk is named by it: a change here makes all runs start afresh. By hand: sha256sum of {"a":"ü","b":[1,2.5,null]}."""
    assert artifacts.fingerprint({"b": [1, 2.5, None], "a": "ü"}) == "91ff63a7ddb19a1b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    return folder


def test_a_folder_is_an_artifact_once_its_marker_is_there(folder: Path) -> None:
    assert not artifacts.is_complete(str(folder))
    artifacts.publish(folder, str(folder), "f" * 16, {"base": "x"})
    assert artifacts.is_complete(str(folder)) and artifacts.is_complete(str(folder), "f" * 16)
    assert not artifacts.is_complete(str(folder), "0" * 16)
    marker = artifacts.read_marker(str(folder))
    assert list(marker["parts"]) == ["a.txt", "sub/b.txt"]
    assert marker["parts"]["a.txt"] == {"bytes": 1, "sha256": artifacts.bytes_sha256(b"a")}
    artifacts.verify(folder)


def test_publishing_elsewhere_copies_all_parts(folder: Path, tmp_path: Path) -> None:
    artifacts.publish(folder, f"file://{tmp_path}/there", "f" * 16, {})
    artifacts.verify(tmp_path / "there")
    assert (tmp_path / "there" / "sub" / "b.txt").read_text() == "b"
    assert not artifacts.is_complete(str(folder))


def test_an_artifact_that_is_complete_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    artifacts.publish(folder, str(target), "f" * 16, {})
    (folder / "a.txt").write_text("changed")
    artifacts.publish(folder, str(target), "f" * 16, {})
    assert (target / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("content", "words"),
    [("x", "its bytes have changed"), ("longer", "missing or of the wrong size"), (None, "missing")],
)
def test_a_part_that_is_not_as_it_was_is_named(folder: Path, content: str | None, words: str) -> None:
    artifacts.publish(folder, str(folder), "f" * 16, {})
    part = folder / "sub" / "b.txt"
    if content is None:
        part.unlink()
    else:
        part.write_text(content)
    with pytest.raises(ArtifactError, match=f"{part}: {words}"):
        artifacts.verify(folder)


def test_a_folder_without_a_marker_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{folder}: not complete .*submit the job again"):
        artifacts.verify(folder)


def test_a_marker_of_another_schema_is_refused(folder: Path) -> None:
    (folder / artifacts.MARKER).write_text('{"schema_version": 99}')
    with pytest.raises(ArtifactError, match="schema version 99, this code reads 1"):
        artifacts.read_marker(str(folder))


def test_a_model_that_a_run_made_is_known_by_its_marker(folder: Path) -> None:
    artifacts.publish(folder, str(folder), "f" * 16, {})
    assert artifacts.model_fingerprint(folder) == "f" * 16


def test_a_models_fingerprint_is_that_of_what_determines_its_answers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = artifacts.model_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("where it comes from")
    assert artifacts.model_fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert artifacts.model_fingerprint(tmp_path) != before


def test_a_folder_without_a_model_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no model"):
        artifacts.model_fingerprint(tmp_path)
