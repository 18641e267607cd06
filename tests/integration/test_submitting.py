"""`rbft submit` and its neighbours against a real head with token authentication.

The jobs' rationales come from a server of the test's own, which holds its answers as long as it is told: no engine has to start, and a
job runs exactly as long as it must.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import NUM_TRAIN, Jobs, RayCluster, wait_for
from tests.integration.submissions import Person, Teacher

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    server = Teacher()
    yield server
    server.close()


@pytest.fixture
def person(jobs: Jobs, ray_cluster: RayCluster) -> Person:
    return Person(jobs, ray_cluster.dashboard, ray_cluster.environment["RAY_AUTH_TOKEN_PATH"])


def test_a_job_is_submitted_once_left_alone_found_again_and_followed_to_its_end(person: Person, teacher: Teacher, jobs: Jobs) -> None:
    run = jobs.run_dir("sent")
    first = person.start(*person.submission("generate", "sent", teacher.setting()))
    wait_for(lambda: bool(teacher.asked), first)
    listed = json.loads(person.run("jobs", "--json")[0])
    (row,) = [row for row in listed if row["run"] == str(run)]
    assert (row["status"], row["what"]) == ("RUNNING", "generate") and row["job"].endswith("-1")

    _, refused = person.run(*person.submission("generate", "sent", teacher.setting(), "seed=9"), expect=2)
    assert "error[job]: " in refused and "another job works there (rbft submit generate --config configs/miniature.yaml" in refused
    (run / "lease.json").rename(run / "hidden.json")  # as from a machine that does not see the run's folder
    _, refused = person.run(*person.submission("generate", "sent", teacher.setting(), "seed=9"), expect=2)
    assert f"job {row['job']} works there (RUNNING); `rbft logs {row['job']}` shows its log" in refused
    (run / "hidden.json").rename(run / "lease.json")

    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 130 and f"the job goes on; `rbft logs {row['job']}` shows its log again" in err, err
    assert "sending " in err and "generate: starting to ask m at" in out
    gone = person.start("logs", "sent")
    assert gone.stdout is not None and "Running entrypoint" in "".join(gone.stdout.readline() for _ in range(2))
    gone.kill()  # the machine it runs on goes away
    gone.communicate()
    again = person.start("logs", "sent")
    teacher.may_answer.set()
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, out + err
    assert out.count(f"generate: {NUM_TRAIN}/{NUM_TRAIN} videos") == 1 and out.count("generate: starting") == 1
    facts = json.loads((run / "run.json").read_text())
    assert facts["command"].startswith("rbft submit generate --config configs/miniature.yaml")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=jobs.repository, capture_output=True, text=True)
    assert facts["commit"] == (head.stdout.strip() or None)

    out, _ = person.run(*person.submission("generate", "sent", teacher.setting(), "seed=9"))
    assert f"{NUM_TRAIN} rationales are there already" in out
    assert person.run("logs", "sent", "--no-follow")[0].count("are there already") == 1, "the newest job of the run"


def test_a_job_is_told_to_stop_and_its_exit_code_says_so(person: Person, teacher: Teacher, jobs: Jobs) -> None:
    job_id = person.run(*person.submission("generate", "halted", teacher.setting()), "--detach")[0].strip()
    following = person.start("logs", job_id)
    wait_for(lambda: bool(teacher.asked), following)
    _, err = person.run("stop", job_id)
    assert f"{job_id}: STOPPED; submitted again, it goes on where it stopped" in err
    out, err = following.communicate(timeout=300)
    assert following.returncode == 130, out + err
    assert "has ended already (STOPPED)" in person.run("stop", "halted")[1]


def test_a_job_that_fails_fails_the_command_with_its_own_code(person: Person, teacher: Teacher) -> None:
    teacher.may_answer.set()
    out, _ = person.run(*person.submission("generate", "lacking", teacher.setting(), "model.path=/nowhere"), expect=2)
    assert "error[model]: /nowhere" in out


def test_without_the_right_token_nothing_is_sent(person: Person, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    person.environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    _, err = person.run("jobs", expect=2)
    assert "refuses our token; copy ~/.ray/auth_token from the head node again" in err and "Traceback" not in err
    person.environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "none")
    _, err = person.run("jobs", expect=2)
    assert "wants a token, and there is none here" in err and "Traceback" not in err
