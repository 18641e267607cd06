"""The doctor on this environment, and against Ray's own authentication code."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from rbft import doctor
from rbft.config import VideoClassifierConfig
from rbft.doctor import Check
from rbft.doctor.cluster import check_ray
from rbft.doctor.libraries import check_decoders, probe
from rbft.doctor.machine import GIB, check_compiler, check_memory, check_run_folder, check_shared_memory

# Ray's own middleware and whitelist (ray/dashboard/http_server_head.py) around the two answers the doctor reads; no cluster behind it.
DASHBOARD = """
import aiohttp.web, ray
from ray._private.authentication import authentication_utils
from ray._private.authentication.http_token_authentication import get_token_auth_middleware
from ray._raylet import get_authentication_mode

async def version(request):
    return aiohttp.web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})

async def mode(request):
    return aiohttp.web.json_response({"authentication_mode": authentication_utils.get_authentication_mode_name(get_authentication_mode())})

async def main():
    middleware = get_token_auth_middleware(aiohttp, whitelisted_exact_paths=["/api/authentication_mode"])
    app = aiohttp.web.Application(middlewares=[middleware])
    app.add_routes([aiohttp.web.get("/api/version", version), aiohttp.web.get("/api/authentication_mode", mode)])
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

import asyncio
asyncio.run(main())
"""


class DiskUsage(NamedTuple):
    total: int
    free: int


class Memory(NamedTuple):
    total: int
    available: int


def dashboard(mode: str) -> Iterator[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "the-cluster-token-0123456789"}
    with subprocess.Popen([sys.executable, "-c", DASHBOARD], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    yield from dashboard("token")


@pytest.fixture(scope="module")
def unlocked() -> Iterator[str]:
    yield from dashboard("disabled")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_token(home: Path, token: str) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(f"{token}\n")


def test_a_cluster_that_takes_our_token_is_ok(locked: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_token(home, "the-cluster-token-0123456789")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check = check_ray(locked)
    assert check == Check("ray", "ok", f"{locked}: Ray {metadata.version('ray')}, takes our token")


def test_the_token_may_stand_in_the_environment(locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-cluster-token-0123456789")
    assert check_ray(locked).status == "ok"


def test_a_token_that_is_there_but_not_switched_on_is_switched_on(locked: str, home: Path) -> None:
    write_token(home, "the-cluster-token-0123456789")
    check = check_ray(locked)
    assert (check.status, check.mend) == ("fail", "export RAY_AUTH_MODE=token")


def test_without_a_token_it_is_said_where_to_get_one(locked: str) -> None:
    check = check_ray(locked)
    assert check.status == "fail"
    assert "wants a token" in check.found
    assert "from the head node" in check.mend


def test_the_token_of_another_cluster_is_refused(locked: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_token(home, "another-token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check = check_ray(locked)
    assert check.status == "fail"
    assert "refuses our token" in check.found
    assert "another-token" not in doctor.format_checks([check])


def test_a_cluster_open_to_everyone_is_warned_of(unlocked: str) -> None:
    check = check_ray(unlocked)
    assert check.status == "warn"
    assert "without token authentication" in check.found


def test_a_token_that_is_wanted_and_missing_fails_without_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert check_ray(None).status == "fail"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert check_ray(None).status == "ok"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9", "ray://127.0.0.1:9", "http://", "nonsense", "http://127.0.0.1:x"])
def test_an_address_where_nothing_answers_fails_with_what_to_do(address: str) -> None:
    check = check_ray(address)
    assert check.status == "fail"
    assert address in check.found
    assert check.mend


def test_an_address_that_speaks_no_http_is_only_tried_for_its_port(locked: str) -> None:
    check = check_ray(locked.removeprefix("http://"))
    assert check.status == "ok"
    assert "cannot be seen" in check.found


def test_this_environment_is_well(tmp_path: Path) -> None:
    checks = doctor.run_checks(run_dir=str(tmp_path / "runs" / "new"))
    # How much memory and disk is free is this machine's affair.
    failed = [check for check in checks if check.status == "fail" and check.name not in ("memory", "shared memory", "run folder")]
    assert failed == []
    assert {check.name for check in checks} >= {
        "python",
        "engine",
        "packages",
        "PyAV",
        "decord",
        "decoders",
        "torch",
        "GPUs",
        "transformers",
        "compiler",
        "ray",
    }
    assert not (tmp_path / "runs").exists()


def test_a_library_that_breaks_its_process_is_a_failed_check_not_the_doctors_end() -> None:
    assert probe("import os; os.kill(os.getpid(), 11)") == (None, "its process was ended by signal 11")
    assert probe("import no_such_library") == (None, "ModuleNotFoundError: No module named 'no_such_library'")


def test_what_a_taken_over_decoder_could_do_is_what_a_confined_process_says() -> None:
    check = check_decoders()
    reasons, _ = probe(
        "import json; from rbft.video.confine import forbid_calls; from rbft.video.landlock import forbid_changes; "
        "print(json.dumps([forbid_changes(), forbid_calls()]))"
    )
    assert (check.status == "ok") == (reasons == [None, None]) and all(reason in check.found for reason in reasons if reason)


def test_a_run_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_run_folder("/proc/runs").status == "fail"
    assert check_run_folder(str(tmp_path / "file" / "runs")).status == "fail"
    assert check_run_folder("s3://bucket/runs").status == "ok"


def test_little_disk_memory_or_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(total=100 * GIB, free=GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(total=8 * GIB, available=4 * GIB))
    assert [check_run_folder(str(tmp_path)).status, check_shared_memory().status, check_memory().status] == [
        "fail",
        "warn",
        "warn",
    ]


def test_a_missing_compiler_is_told_with_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = check_compiler()
    assert check.status == "fail"
    assert check.found == "missing: g++"  # ninja is beside the interpreter
    assert "apt install g++" in check.mend


def test_a_missing_video_model_is_told_with_its_checkpoint_and_where_it_goes(tmp_path: Path) -> None:
    classifier = VideoClassifierConfig(name="UniFormerV2", path=str(tmp_path / "uniformerv2"), recipe="uniformerv2-b16-transfer")
    check = doctor.check_video_classifier(classifier)
    assert check.status == "fail" and check.name == "model UniFormerV2"
    assert check.mend.startswith("download https://") and "k400_k710_uniformerv2_b16_8x224.pyth, then: rbft convert" in check.mend
    assert check.mend.endswith(f"--out {tmp_path / 'uniformerv2'}")
    other = doctor.check_video_classifier(classifier.model_copy(update={"recipe": None}))
    assert "copy the folder of a Hugging Face video classifier to" in other.mend
    (tmp_path / "uniformerv2").mkdir()
    assert "has no config.json" in doctor.check_video_classifier(classifier).found


def test_the_exit_code_is_1_when_something_fails_and_the_report_says_what_to_do() -> None:
    checks = [Check("a", "ok", "fine"), Check("longer", "warn", "so so", "look at it")]
    assert doctor.exit_code(checks) == 0
    checks.append(Check("b", "fail", "broken", "mend it"))
    assert doctor.exit_code(checks) == 1
    assert doctor.format_checks(checks).splitlines() == [
        "ok    a       fine",
        "WARN  longer  so so",
        "              -> look at it",
        "FAIL  b       broken",
        "              -> mend it",
        "1 ok, 1 to look at, 1 to mend",
    ]
