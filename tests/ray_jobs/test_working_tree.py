"""What is sent to a cluster, and what stays here."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from ray_jobs import working_tree
from ray_jobs.working_tree import pack, read_working_tree
from rbft.errors import JobError


def write(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t", *arguments], check=True, capture_output=True)


def test_of_a_checkout_what_is_tracked_or_new_is_sent_and_what_is_ignored_is_not(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "configs/b.yaml", "gone.py", "runs/r/run.json", ".venv/lib/c.py", "new.py")
    write(tmp_path, ".gitignore", content=b".venv/\nruns/\n")
    git(tmp_path, "init")
    git(tmp_path, "add", "a.py", "configs", "gone.py", ".gitignore")
    (tmp_path / "gone.py").unlink()
    assert read_working_tree(tmp_path).files == (".gitignore", "a.py", "configs/b.yaml", "new.py")


def test_a_folder_of_a_checkout_is_sent_by_itself(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "below/b.py")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    assert read_working_tree(tmp_path / "below").files == ("b.py",)


def test_a_checkout_that_git_does_not_tell_of_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone knows what is ignored, and that may be secret."""
    write(tmp_path, "below/a.py", ".gitignore", ".git/HEAD")
    with pytest.raises(JobError, match="git does not list its files: fatal: "):
        read_working_tree(tmp_path / "below")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match="is a git checkout, and git cannot be run"):
        read_working_tree(tmp_path)


def test_outside_a_checkout_junk_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(tmp_path, "a.py", "runs/r/run.json", ".venv/lib/c.py", "p/__pycache__/p.pyc", ".mypy_cache/x", "rbft.egg-info/x", "p/b.py")
    assert read_working_tree(tmp_path).files == ("a.py", "p/b.py")


def test_videos_and_large_files_stay_here_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_tree, "MAX_FILE_BYTES", 10)
    write(tmp_path, "a.py", "clips/1.mp4", "clips/2.MKV")
    write(tmp_path, "weights.bin", content=bytes(11))
    tree = read_working_tree(tmp_path)
    assert tree.files == ("a.py",) and tree.left_out == ("clips/1.mp4", "clips/2.MKV", "weights.bin")
    assert "1 files, 0.0 MiB\nleft out: 3 videos or files over" in tree.describe() and "weights.bin" in tree.describe()


def test_what_may_be_secret_is_not_sent_even_if_git_tracks_it_and_is_named(tmp_path: Path) -> None:
    secrets = (".env", ".ray-token-7.x", "deep/keys-desk.txt", "deep/site.pem", "tls.key/a")
    write(tmp_path, "a.py", "keys.py", *secrets)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    tree = read_working_tree(tmp_path)
    assert tree.files == ("a.py", "keys.py") and tree.secrets == secrets
    assert tree.describe().endswith("\nleft out: 5 files that may be secret, by their names (.env, .ray-token-7.x, deep/keys-desk.txt, …)")


def test_git_ignores_what_is_known_by_its_name_here(repository: Path) -> None:
    ignored = {line.rstrip("/") for line in (repository / ".gitignore").read_text().splitlines() if not line.startswith("#")}
    assert ignored == {*working_tree.JUNK, *working_tree.SECRETS} - {".git"}


def test_too_much_is_refused_with_the_folder_it_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_tree, "MAX_BYTES", 3 * working_tree.MIB)
    write(tmp_path, *(f"dump/{number}" for number in range(4)), content=bytes(working_tree.MIB))
    write(tmp_path, "a.py")
    with pytest.raises(JobError, match=r"more than 3 MiB would be sent, most of it in dump; name in \.gitignore"):
        read_working_tree(tmp_path)


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write(root, "a.py", "b/c.sh")
    (root / "b/c.sh").chmod(0o755)
    archives = [tmp_path / f"{number}.zip" for number in range(3)]
    pack(read_working_tree(root), {"run.yaml": "name: x\n"}, archives[0])
    (root / "a.py").touch()
    pack(read_working_tree(root), {"run.yaml": "name: x\n"}, archives[1])
    (root / "a.py").write_text("y")
    pack(read_working_tree(root), {"run.yaml": "name: x\n"}, archives[2])
    contents = [archive.read_bytes() for archive in archives]
    assert contents[0] == contents[1] != contents[2]
    with zipfile.ZipFile(archives[0]) as packed:
        assert packed.namelist() == ["a.py", "b/c.sh", "run.yaml"] and packed.read("run.yaml") == b"name: x\n"
        assert packed.getinfo("b/c.sh").external_attr >> 16 == 0o755
