"""`rbft submit`, `jobs`, `logs`, `stop`: jobs on a cluster, from a machine that need not stay.

    run file + overrides -> one resolved run file -> an archive with the working tree -> Ray's job API -> the job's log and exit code

Only code and the run file travel. Paths in it are as seen from here: data, models and the run's folder lie where every node sees them.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shlex
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs import job_client
from ray_jobs.cli import REPRODUCIBLE
from ray_jobs.job_client import tell
from ray_jobs.run import COMMAND_VARIABLE, COMMIT_VARIABLE, commit
from ray_jobs.working_tree import pack, read_working_tree
from rbft import artifacts, lease
from rbft.config import RunConfig, dump_config, load_config
from rbft.errors import ArtifactError, ConfigError, JobError
from rbft.evaluation.tables import duration

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

NO_AGENT = (
    "the head's job agent is not there: another Ray on that machine may have its port, see dashboard_agent.log of the head and `ray start "
    "--dashboard-agent-listen-port`"
)
RUN_FILE = "rbft-submitted.yaml"
"""The run file in the archive, the first if there are several."""


@dataclass(frozen=True)
class Submission:
    """A job as it is handed to the cluster."""

    verb: str
    configs: tuple[RunConfig, ...]
    """Of the runs that it works on: several only where several backbones are compared."""
    entrypoint: str
    environment: dict[str, str]

    @property
    def config(self) -> RunConfig:
        """Of the run by which the job is known."""
        return self.configs[0]

    @property
    def prefix(self) -> str:
        """How the ids of all jobs on this run begin, whoever submits them."""
        return f"{self.config.name}-{artifacts.fingerprint(self.config.run_dir)[:6]}-"


def submit(arguments: argparse.Namespace) -> int:
    """The handler of `rbft submit`: the job's exit code, or 0 once it is submitted if it is left alone then."""
    submission = make_submission(arguments)
    tree = read_working_tree(Path(arguments.working_dir))
    tell(f"sending {tree.describe()}")
    for line in dict.fromkeys(line for config in submission.configs for line in told_paths(config)):
        tell(line)
    if arguments.dry_run:
        tell(f"would run: {submission.entrypoint}")
        return 0
    for config in submission.configs:
        refuse_if_held(config)
    client = job_client.connect(arguments.address)
    with tempfile.TemporaryDirectory(prefix="rbft-submit-") as scratch:
        archive = Path(scratch) / "working_tree.zip"
        pack(tree, {_run_file(number): dump_config(config) for number, config in enumerate(submission.configs)}, archive)
        job_id = hand_in(client, submission, archive)
    tell(f"submitted as {job_id}: `rbft logs {job_id}` shows its log, `rbft stop {job_id}` ends it")
    if arguments.detach:
        print(job_id)
        return 0
    return job_client.follow(client, job_id)


def make_submission(arguments: argparse.Namespace) -> Submission:
    """Raises `ConfigError` if the command line or a run file is wrong."""
    _check(arguments)
    configs = tuple(_from_anywhere(load_config(path, arguments.overrides)) for path in arguments.config)
    entrypoint = ["python", "-m", f"ray_jobs.{arguments.verb}", *arguments.what]
    entrypoint += [word for number in range(len(configs)) for word in ("--config", _run_file(number))]
    entrypoint += ["--retry-errors"] if arguments.retry_errors else []
    typed = ["rbft", "submit", arguments.verb, *arguments.what]
    typed += [word for path in arguments.config for word in ("--config", path)]
    typed += [word for override in arguments.overrides for word in ("--set", override)]
    environment = {COMMAND_VARIABLE: shlex.join(typed), "RAY_JOB_STOP_WAIT_TIME_S": str(job_client.STOP_WAIT_S)}
    if found := commit():
        environment[COMMIT_VARIABLE] = found
    return Submission(arguments.verb, configs, shlex.join(entrypoint), environment)


def _check(arguments: argparse.Namespace) -> None:
    verb, what = arguments.verb, arguments.what
    if verb != "reproduce":
        if what or len(arguments.config) > 1:
            raise ConfigError(f"rbft submit {verb} takes one --config and nothing else; `reproduce` takes several, and what to reproduce")
        return
    if not what or not set(what) <= set(REPRODUCIBLE):
        raise ConfigError(f"rbft submit reproduce {' '.join(what) or 'what?'}: give one or more of {', '.join(REPRODUCIBLE)}")
    if arguments.retry_errors:
        raise ConfigError("rbft submit reproduce has no --retry-errors; submit `evaluate` with it first")


def _from_anywhere(config: RunConfig) -> RunConfig:
    """With its `output_dir` as it is from here: a job's own folder is gone when the job is."""
    if "://" in config.output_dir:
        return config
    return config.model_copy(update={"output_dir": os.path.abspath(os.path.expanduser(config.output_dir))})


def _run_file(number: int) -> str:
    """The name of a run file in the archive."""
    return RUN_FILE if number == 0 else RUN_FILE.replace(".", f"-{number + 1}.")


def told_paths(config: RunConfig) -> list[str]:
    """What every node of the cluster must see, for a person who may submit from a machine that shares no disk with it."""
    data = config.data
    source = data.manifest or data.annotations or data.folder or data.smarthome or data.multihateclip
    places = {"videos": source, "model": config.model.path, "run": config.run_dir}
    local = [f"{name} {place}" for name, place in places.items() if place and "://" not in place and os.path.isabs(place)]
    return [f"every node must see: {', '.join(local)}"] if local else []


def refuse_if_held(config: RunConfig) -> None:
    """Raise `JobError` if a job works on the run, as far as that can be told from here."""
    try:
        lease.refuse_if_held(config.run_dir)
    except ArtifactError:  # a store that only the cluster may read: the job itself will see
        return


def hand_in(client: JobSubmissionClient, submission: Submission, archive: Path) -> str:
    """The id of the job. Raises `JobError` if another one of the same run has not ended.

    The id is the run's next, and the cluster takes each once: of two that submit at the same moment one is refused.
    """
    before = [job for job in job_client.our_jobs(client) if str(job.submission_id).startswith(submission.prefix)]
    for job in before:
        if not job_client.is_over(job):
            live = str(job.submission_id)
            job_client.remind(client, live)
            raise JobError(
                f"{submission.config.run_dir}: job {live} works there ({job.status}); `rbft logs {live}` shows its log, `rbft stop {live}` "
                "ends it. If the head was started anew, it may take a minute to know that a job went with the old one: submit again then"
            )
    job_id = f"{submission.prefix}{_next_number(submission.prefix, [str(job.submission_id) for job in before])}"
    metadata = {
        job_client.RUN_KEY: submission.config.run_dir,
        job_client.NAME_KEY: submission.config.name,
        job_client.VERB_KEY: submission.verb,
        job_client.NONCE_KEY: uuid.uuid4().hex,
        "rbft_by": f"{getpass.getuser()} on {socket.gethostname()}",
    }

    def hand_in_once() -> None:
        try:
            client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=job_id,
                runtime_env={"working_dir": str(archive), "env_vars": submission.environment},
                metadata=dict(metadata),
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            # Ours, if the answer to an earlier attempt was lost on its way.
            if (client.get_job_info(job_id).metadata or {}).get(job_client.NONCE_KEY) != metadata[job_client.NONCE_KEY]:
                raise JobError(f"{submission.config.run_dir}: somebody else submitted this run this very moment ({job_id})") from None

    job_client.retried(hand_in_once, "the cluster takes no jobs", NO_AGENT)
    return job_id


def _next_number(prefix: str, ids: Iterable[str]) -> int:
    """One more than the highest of the run's jobs: `ray job delete` leaves gaps, and a number that is there cannot be given again."""
    numbers = (id_.removeprefix(prefix) for id_ in ids)
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def show_jobs(arguments: argparse.Namespace) -> None:
    """The handler of `rbft jobs`."""
    jobs = job_client.our_jobs(job_client.connect(arguments.address))
    if not arguments.all:
        jobs = [job for job in jobs if not job_client.is_over(job)] or jobs[:5]
    if arguments.json:
        print(json.dumps([_row(job) for job in jobs], indent=2))
        return
    if not jobs:
        tell("no job was ever submitted to this cluster")
        return
    columns = ("job", "status", "submitted", "took", "what", "run")
    table = [columns, *(tuple(str(_row(job)[column] or "") for column in columns) for job in jobs)]
    widths = [max(len(row[number]) for row in table) for number in range(len(columns))]
    for row in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(job: JobDetails) -> dict[str, str | int | None]:
    metadata = job.metadata or {}
    started_s = (job.start_time or 0) / 1000
    ended_s = job.end_time / 1000 if job.end_time else time.time()
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        "took": duration(max(0.0, ended_s - started_s)),
        "what": metadata.get(job_client.VERB_KEY) or job.entrypoint,
        "run": metadata.get(job_client.RUN_KEY),
        "by": metadata.get("rbft_by"),
        "exit_code": job.driver_exit_code,
    }


def show_log(arguments: argparse.Namespace) -> int:
    """The handler of `rbft logs`: the job's exit code if it is followed to its end."""
    client = job_client.connect(arguments.address)
    job = job_client.find_job(job_client.our_jobs(client), arguments.job)
    if arguments.no_follow:
        print(job_client.retried(lambda: client.get_job_logs(job.submission_id), "the cluster does not give the log"), end="")
        return 0
    return job_client.follow(client, str(job.submission_id))


def stop_job(arguments: argparse.Namespace) -> None:
    """The handler of `rbft stop`."""
    client = job_client.connect(arguments.address)
    job = job_client.find_job(job_client.our_jobs(client), arguments.job)
    if job_client.is_over(job):
        tell(f"{job.submission_id}: has ended already ({job.status})")
        return
    tell(f"{job.submission_id}: told to stop; training saves first, which may take some minutes")
    ended = job_client.stop(client, job)
    tell(f"{job.submission_id}: {ended.status}; submitted again, it goes on where it stopped")
