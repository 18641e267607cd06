"""Videos as they come, odd, broken and hostile, through the whole job: each ends in one row, and the job says what was wrong."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from rbft import rows
from rbft.errors import VideoError
from rbft.records import rationale_schema
from tests.integration.conftest import Jobs
from tests.samples import write_video

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]

MEDIA = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "media"
"""Real files of other projects' test suites, beside the checkout where there are such; too large for the repository."""


def test_whatever_the_videos_are_each_ends_in_one_row(jobs: Jobs, tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4")
    files = {"good": (good, "frames"), **made_odd(tmp_path, good), **found_odd()}
    manifest = tmp_path / "labels.csv"
    with manifest.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "uri", "label", "split"])
        table.writerows([id_, path, "normal", "train"] for id_, (path, _) in files.items())
    output = jobs.run(
        *("generate", "odd", "data.manifest=null", f"data.annotations={manifest}", "data.max_bad_fraction=1"),
        *("video.timeout_s=10", "engine.rows_per_block=16"),
    )
    (folder,) = (jobs.run_dir("odd") / "rationales").iterdir()
    table = rows.read_finished(str(folder), "rationales", rationale_schema())
    codes = dict(zip(table["id"].to_pylist(), table["error_code"].to_pylist(), strict=True))
    assert list(codes) == list(files)
    bad = {id_: code for id_, code in codes.items() if code}
    kinds: list[type[VideoError]] = [VideoError, *VideoError.__subclasses__()]
    assert set(bad.values()) <= {kind.code for kind in kinds}
    assert set(made_odd(tmp_path, good)) <= set(bad)
    # What others made of the found ones: ours reads a few more, and refuses a few.
    for is_sound in (True, False):
        found = [id_ for id_, (_, expected) in files.items() if (expected == "frames") == is_sound]
        assert sum((id_ in bad) == is_sound for id_ in found) <= 0.1 * len(found)
    for code, count in Counter(bad.values()).items():
        assert f" {code} {count} " in " ".join(output.split())


def made_odd(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Id -> file and what it holds: made here, so that the test needs nothing from elsewhere."""
    content = good.read_bytes()
    broken = {
        "empty": b"",
        "text": b"this is no video",
        "cut": content[: len(content) // 2],
        "playlist": f"#EXTM3U\n#EXTINF:1,\n{good}\n".encode(),
        "concat": f"ffconcat version 1.0\nfile {good}\n".encode(),
    }
    for name, what in broken.items():
        (folder / f"{name}.mp4").write_bytes(what)
    return {name: (folder / f"{name}.mp4", "undecodable") for name in [*broken, "missing"]}


def found_odd() -> dict[str, tuple[Path, str]]:
    if not MEDIA.is_dir():
        return {}
    with (MEDIA / "manifest.csv").open(newline="") as stream:
        return {f"{row['suite']}/{row['file']}": (MEDIA / row["suite"] / row["file"], row["expected"]) for row in csv.DictReader(stream)}
