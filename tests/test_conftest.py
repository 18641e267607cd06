"""The rules of the test session itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BODY = """
import pytest

def test_that_runs():
    pass

{skip}
def test_that_is_skipped():
    pass
"""


@pytest.mark.parametrize(
    ("skip", "exit_code"),
    [
        ("", 0),
        ("@pytest.mark.skip(reason='needs a GPU')", 0),
        ("@pytest.mark.skip(reason='no network')", 1),
        ("pytest.importorskip('no_such')", 1),
    ],
)
def test_a_skip_fails_the_session_unless_a_gpu_is_missing(tmp_path: Path, skip: str, exit_code: int) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(Path(__file__).parent / "conftest.py", tests)
    (tests / "test_some.py").write_text("def test_another():\n    pass\n")
    (tests / "test_skips.py").write_text(BODY.format(skip=skip))
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tests], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == exit_code, done.stdout
    assert ("not allowed" in done.stdout) == bool(exit_code)
