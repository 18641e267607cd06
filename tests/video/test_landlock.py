"""Which files a decoder's process can still touch, asked of a process that has given up the others, and of a decoder itself."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rbft.errors import VideoError
from rbft.records import VideoSpec
from rbft.video.pool import DecodePool


def confined(code: str, repository: Path, *arguments: str) -> str:
    """What `code` prints after it has given up changing files."""
    program = f"import sys\nfrom rbft.video.landlock import forbid_changes\nwhy = forbid_changes()\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def landlock(repository: Path) -> None:
    """This machine's kernel has it: what follows is about what it then forbids. A kernel without is `test_without_landlock…`'s."""
    assert confined("print(why)", repository) == "None"


@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize(
    "attempt",
    [
        "open(f'{folder}/new', 'w')",
        "open(f'{folder}/old', 'a')",
        "os.truncate(f'{folder}/old', 0)",
        "os.unlink(f'{folder}/old')",
        "os.rename(f'{folder}/old', f'{folder}/new')",
        "os.mkdir(f'{folder}/new')",
        "os.symlink('/etc/passwd', f'{folder}/new')",
        "open('/proc/self/environ', 'rb')",
        "open(f'/proc/{os.getppid()}/environ', 'rb')",
        "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "os.kill(os.getppid(), 0)",
        "failed = []\n"
        "def run():\n    try: open(f'{folder}/new', 'w')\n    except OSError as error: failed.append(error)\n"
        "import threading\nthread = threading.Thread(target=run); thread.start(); thread.join(); raise failed[0]",
    ],
)
def test_it_changes_nothing_and_looks_into_no_process(repository: Path, tmp_path: Path, attempt: str) -> None:
    (tmp_path / "old").write_text("as it was")
    code = f"import os\nfolder = sys.argv[1]\ntry:\n{textwrap.indent(attempt, '    ')}\nexcept PermissionError:\n    print('refused')"
    assert confined(code, repository, str(tmp_path)) == "refused"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("old", "as it was")]


@pytest.mark.usefixtures("landlock")
def test_a_decoder_that_is_taken_over_is_held_by_it(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in place of decord's does what it likes, in a real decoder process."""
    (tmp_path / "decord.py").write_text(
        textwrap.dedent(f"""
        import os
        found = []
        for attempt in (
            lambda: open("{tmp_path}/new", "w"),
            lambda: open(f"/proc/{{os.getppid()}}/environ"),
            lambda: os.kill(os.getppid(), 0),
        ):
            try:
                attempt()
                found.append("allowed")
            except PermissionError:
                found.append("refused")
        raise RuntimeError(" ".join(found))
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with DecodePool(1) as pool, pytest.raises(VideoError, match="refused refused refused"):
        pool.decode(plain, VideoSpec(backend="decord"))
    assert not (tmp_path / "new").exists()


def test_a_decoder_can_write_nothing_whatever_the_kernel(repository: Path, tmp_path: Path) -> None:
    """`RLIMIT_FSIZE` where there is no Landlock, as when a container's filter refuses it."""
    code = """
        import os
        from rbft.video import landlock

        def refuse(libc):
            raise PermissionError(1, "Operation not permitted")

        landlock._restrict = refuse
        assert "no Landlock" in forbid_changes()
        try:
            with open(sys.argv[1], "wb", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            print("refused", error.errno)
    """
    program = f"import sys\nfrom rbft.video.landlock import forbid_changes\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "new")], cwd=repository, capture_output=True, text=True)
    assert done.stdout.strip() == "refused 27", done.stderr
    assert os.stat(tmp_path / "new").st_size == 0
