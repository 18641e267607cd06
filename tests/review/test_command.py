"""`rbft review` as a person runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rbft import cli
from rbft.config import RunConfig


@pytest.fixture
def arguments(config: RunConfig, repository: Path) -> list[str]:
    return ["review", "--config", str(repository / "configs/miniature.yaml"), "--set", f"output_dir={config.output_dir}", "--by", "ada"]


def test_the_page_answers_at_the_printed_address_until_ctrl_c_which_ends_it_with_the_counts(arguments: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "rbft.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    assert first.startswith("4 rationales in ") and "reviewed by ada" in first
    url = second.split()[1]
    assert url.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=url) as client:
        assert "rationales under review" in client.get("").text
        client.post("change", json={"id": "sorry", "action": "exclude"}).raise_for_status()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "3 untouched, 0 kept, 0 edited, 1 excluded" in out


def test_out_to_a_spreadsheet_and_in_again(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "review.csv"
    assert cli.main([*arguments, "--export", str(sheet)]) == 0
    sheet.write_text(sheet.read_text(encoding="utf-8").replace("it looks red", "it looks brown"), encoding="utf-8")
    assert cli.main([*arguments, "--import", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert f"wrote 4 rationales to {sheet}" in out and "recorded 1 changes by ada" in out
    assert "3 untouched, 0 kept, 1 edited, 0 excluded" in out
    sheet.write_text("id,text\nx,y\n")
    assert cli.main([*arguments, "--import", str(sheet)]) == 2
    assert "line 1: the columns must be" in capsys.readouterr().err
