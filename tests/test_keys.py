"""A file of keys: what is in it, who is let in by it, what happens when it changes."""

import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.cli import main
from rbft.errors import ConfigError
from rbft.keys import KeyRing, add_key, read_keys, remove_key


def test_a_key_is_told_once_and_its_file_holds_only_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    key = add_key(path, "front-desk")
    text = path.read_text()
    assert key not in text and key.removeprefix("rbft_") not in text
    assert text == f"front-desk:{hashlib.sha256(key.encode()).hexdigest()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_each_key_is_known_by_its_name_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    keys = {name: add_key(path, name) for name in ("a", "b", "c")}
    ring = KeyRing(path)
    found = {name: ring.match(key) for name, key in keys.items()}
    assert {name: key.name for name, key in found.items() if key} == {"a": "a", "b": "b", "c": "c"}
    assert len(set(keys.values())) == 3
    for wrong in ("", keys["a"][:-1], keys["a"] + "x", keys["a"].upper(), read_keys(path)[0].sha256):
        assert ring.match(wrong) is None


@given(presented=st.text(st.characters(max_codepoint=255)))
def test_what_is_presented_cannot_break_the_lock(tmp_path_factory: pytest.TempPathFactory, presented: str) -> None:
    path = tmp_path_factory.getbasetemp() / "some-keys.txt"
    if not path.exists():
        add_key(path, "a")
    assert KeyRing(path).match(presented) is None


def test_a_ring_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    old = add_key(path, "old")
    ring = KeyRing(path)
    new = add_key(path, "new")
    assert ring.match(new) and ring.match(old)
    remove_key(path, "old")
    assert ring.match(new) and ring.match(old) is None


@pytest.mark.parametrize("content", [None, b"front-desk: not a hash\n", b"\xff\xfe"])
def test_a_file_that_goes_bad_lets_nobody_in(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.txt"
    key = add_key(path, "a")
    ring = KeyRing(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert ring.match(key) is None


def test_a_line_that_is_no_hash_is_named_by_its_number_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    key = add_key(path, "a")
    path.write_text(path.read_text() + f"# a comment\n\n{key}\n")
    with pytest.raises(ConfigError, match="line 4") as raised:
        read_keys(path)
    assert key not in str(raised.value)


def test_a_file_that_is_there_keeps_its_mode_and_a_new_one_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    assert main(["keys", "add", str(path), "first"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    assert main(["keys", "add", str(path), "second"]) == 0
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_command_adds_lists_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "deep" / "keys.txt")
    assert main(["keys", "add", path, "front-desk"]) == 0
    key = capsys.readouterr().out.strip()
    assert KeyRing(path).match(key)
    assert main(["keys", "add", path, "front-desk"]) == 2
    assert "another name" in capsys.readouterr().err
    assert main(["keys", "add", path, "no name: at all"]) == 2
    assert main(["keys", "list", path]) == 0
    assert "front-desk\n" in capsys.readouterr().out
    assert main(["keys", "remove", path, "front-desk"]) == 0
    assert main(["keys", "remove", path, "front-desk"]) == 2
    assert KeyRing(path).match(key) is None
