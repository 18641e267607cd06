"""What a submission consists of, and how patient its client is. The cluster itself is in tests/integration/test_submitting.py."""

from __future__ import annotations

import argparse
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray.job_submission import JobStatus

from ray_jobs import job_client
from ray_jobs.job_client import exit_code, find_job, retried
from ray_jobs.submit import hand_in, make_submission, refuse_if_held, told_paths
from rbft import cli, storage
from rbft.config import dump_config, load_config
from rbft.errors import ConfigError, JobError


def parse(*words: str) -> argparse.Namespace:
    parser, _ = cli.build_parser()
    return parser.parse_args(["submit", "pipeline", "--config", "configs/miniature.yaml", *words])


def test_a_job_gets_one_run_file_in_which_nothing_depends_on_where_it_lies(repository: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(repository)
    settings = ("name=other", "training.num_workers=1", "task.persona=a plumber, and 'more'")
    submission = make_submission(parse(*(word for setting in settings for word in ("--set", setting)), "--retry-errors"))
    assert shlex.split(submission.entrypoint)[:3] == ["python", "-m", "ray_jobs.pipeline"] and "--retry-errors" in submission.entrypoint
    (tmp_path / "run.yaml").write_text(dump_config(submission.config))
    monkeypatch.chdir(tmp_path)
    config = load_config("run.yaml")
    assert config == submission.config and config.task.persona == "a plumber, and 'more'"
    assert config.run_dir == str(repository / "runs/other") and config.model.path == str(repository / "miniature/model")
    assert shlex.split(submission.environment["RBFT_COMMAND"])[-2:] == ["--set", settings[-1]]


def test_a_run_on_a_store_stays_where_it_is(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    config = make_submission(parse("--set", "output_dir=s3://bucket/runs")).config
    assert config.run_dir == "s3://bucket/runs/miniature" and "run" not in " ".join(told_paths(config)).split()


def test_several_backbones_are_reproduced_by_one_job(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    names = [f"smarthome-{backbone}-7b" for backbone in ("qwen2-vl", "qwen2.5-vl")]
    words = ["submit", "reproduce", "table1", "figure2", *(word for name in names for word in ("--config", f"configs/{name}.yaml"))]
    submission = make_submission(cli.build_parser()[0].parse_args(words))
    assert [config.name for config in submission.configs] == names and submission.prefix.startswith(f"{names[0]}-")
    said = "python -m ray_jobs.reproduce table1 figure2 --config rbft-submitted.yaml --config rbft-submitted-2.yaml"
    assert submission.entrypoint == said
    assert submission.environment["RBFT_COMMAND"] == shlex.join(["rbft", *words])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["reproduce", "table9"], "table9: give one or more of table1"),
        (["reproduce"], "what?: give one or more of table1"),
        (["reproduce", "table1", "--retry-errors"], "submit `evaluate` with it first"),
        (["pipeline", "table1"], "takes one --config and nothing else"),
        (["train", "--config", "configs/miniature.yaml"], "takes one --config and nothing else"),
    ],
)
def test_what_cannot_be_submitted_is_told_with_what_can(
    repository: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(repository)
    arguments = cli.build_parser()[0].parse_args(["submit", *words, "--config", "configs/miniature.yaml"])
    with pytest.raises(ConfigError, match=re.escape(says)):
        make_submission(arguments)


def test_the_ids_of_a_runs_jobs_begin_alike_whatever_they_do(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    here, again, elsewhere = (make_submission(parse(*more)).prefix for more in ((), ("--set", "seed=9"), ("--set", "output_dir=/data")))
    assert here == again != elsewhere and here.startswith("miniature-")


def test_a_job_gets_the_number_after_the_highest_one_also_when_an_older_job_was_deleted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    submission = make_submission(parse())
    taken = [f"{submission.prefix}{number}" for number in (2, 10)] + [f"{submission.prefix}by-hand", "another-1"]
    jobs = [job(JobStatus.SUCCEEDED, submission_id=id_, start_time=1) for id_ in taken]
    client: Any = SimpleNamespace(list_jobs=lambda: jobs, submit_job=lambda **_: None)
    assert hand_in(client, submission, tmp_path / "a.zip") == f"{submission.prefix}11"
    jobs.clear()
    assert hand_in(client, submission, tmp_path / "a.zip") == f"{submission.prefix}1"


def test_a_run_in_a_store_that_only_the_cluster_may_read_can_be_submitted(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)

    def refuse(*_: object) -> None:
        raise OSError("AWS Error ACCESS_DENIED during HeadObject operation")

    monkeypatch.setattr(storage, "_file_type", refuse)
    refuse_if_held(make_submission(parse()).config)


def test_nothing_is_sent_in_a_dry_run(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(repository)
    assert cli.main(["submit", "generate", "--config", "configs/miniature.yaml", "--dry-run", "--address", "http://127.0.0.1:9"]) == 0
    told = capsys.readouterr().err
    assert f"sending {repository}: " in told and " MiB" in told and "would run: python -m ray_jobs.generate" in told
    assert f"every node must see: videos {repository}/runs/miniature/world/manifest.parquet" in told


class Flaky:
    """Fails so many times, then works."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error, self.left = error, times

    def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise self._error
        return "done"


NO_AGENT = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later..")


@pytest.mark.parametrize("error", [NO_AGENT, ConnectionError("refused"), requests.ConnectionError("refused"), requests.Timeout()])
def test_a_head_that_is_not_ready_is_asked_again_and_a_person_is_told_once(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert retried(Flaky(error, 2), "the cluster takes no jobs") == "done"
    told = capsys.readouterr().err
    assert told.count("the cluster takes no jobs yet") == 1 and "trying for 300 s" in told


def test_one_that_never_is_ends_with_what_to_do() -> None:
    with pytest.raises(JobError, match=r"the cluster takes no jobs \(.*No available agent.*\); start the cluster"):
        retried(Flaky(NO_AGENT, 99), "the cluster takes no jobs", patience_s=0.5)


def test_a_request_that_is_wrong_is_not_repeated() -> None:
    wrong = Flaky(RuntimeError("Request failed with status code 400: no"), 1)
    with pytest.raises(JobError, match=r"the cluster takes no jobs \(Request failed with status code 400: no\)$"):
        retried(wrong, "the cluster takes no jobs")
    assert not wrong.left


def job(status: str, code: int | None = None, **more: Any) -> Any:
    fields: dict[str, Any] = {"submission_id": "a-1", "status": status, "driver_exit_code": code, "message": "it died", "metadata": {}}
    return SimpleNamespace(**(fields | more))


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        *((job("SUCCEEDED", 0), 0), (job("FAILED", 2), 2), (job("FAILED", -9), 137), (job("STOPPED", -15), 130)),
        *((job("FAILED"), 1), (job("FAILED", 0), 1)),  # its node went; its supervisor went after the driver had ended
    ],
)
def test_the_exit_code_is_the_jobs_own(ended: Any, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(ended) == expected
    assert ("it died" in capsys.readouterr().err) == (ended.driver_exit_code is None)


def test_a_job_is_found_by_its_id_or_as_the_newest_of_its_run() -> None:
    jobs = [SimpleNamespace(submission_id=f"a-{number}", metadata={job_client.NAME_KEY: "a"}) for number in (2, 1)]
    assert [find_job(jobs, wanted).submission_id for wanted in ("a-1", "a")] == ["a-1", "a-2"]  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"b: the cluster knows no such job or run \(a-2, a-1\); `rbft jobs` lists them"):
        find_job(jobs, "b")  # type: ignore[arg-type]


@pytest.fixture
def answering() -> Iterator[Callable[[str], str]]:
    """Starts a server that answers everything with one text; its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variables of Ray's, and what is set meanwhile does not outlive the test."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_ray_here")
def test_a_server_that_is_no_ray_is_told(answering: Callable[[str], str]) -> None:
    with pytest.raises(JobError, match="answers, but not as Ray does"):
        job_client.connect(answering("<html>"))


@pytest.mark.usefixtures("no_ray_here")
def test_a_token_that_is_missing_is_told_before_anything_is_asked(
    answering: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(JobError, match=r"wants a token, and there is none here; copy ~/\.ray/auth_token"):
        job_client.connect(answering('{"authentication_mode": "token"}'))
