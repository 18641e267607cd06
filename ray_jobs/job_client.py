"""Talking to a cluster about its jobs: joining its job API, finding jobs, following and ending them.

All of it goes over HTTP to the dashboard's port, as `ray job submit` does, with Ray's own client. A head that is not ready yet, or a
connection that is cut meanwhile, is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
import tenacity

from rbft.errors import JobError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
READY_S = 300.0
"""How long a head may take to be ready: after `ray start` its job agent needs some seconds more, on a busy machine minutes."""
REATTACH_S = 600.0
"""How long a job is followed without an answer from its cluster."""
QUIET_S = 60.0
"""After so long without a line the log is asked for anew: a cut connection looks the same."""
REQUEST_TIMEOUT_S = 60.0
STOP_WAIT_S = 600
"""How long a job that is told to stop may take to save what it did. Ray's own default, 3 s, is too short for a checkpoint."""

RUN_KEY, NAME_KEY, VERB_KEY, NONCE_KEY = "rbft_run", "rbft_name", "rbft_verb", "rbft_nonce"
"""Metadata of the jobs that `rbft submit` makes: the run's folder, its name, what is done, and which submission it was."""

T = TypeVar("T")


def tell(line: str) -> None:
    """To a person, beside a job's log or a table on stdout."""
    print(line, file=sys.stderr, flush=True)


def connect(address: str | None) -> JobSubmissionClient:
    """The job API of the cluster at `address` (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine's).

    Raises `JobError` if nobody answers there for `READY_S`, or the cluster refuses our token.
    """
    environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    address = address or environment or DEFAULT_ADDRESS
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else Ray's client would prefer RAY_ADDRESS to what it is told
    if address.startswith(("http://", "https://")):
        retried(lambda: _agree_on_authentication(address), f"{address}: no Ray answers")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's, which would wait for ever where a connection is cut."""

        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": REQUEST_TIMEOUT_S} | options)

    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return retried(lambda: Client(address), f"{address}: no Ray answers")
    except AuthenticationError:
        raise JobError(f"{address}: refuses our token; copy ~/.ray/auth_token from the head node again (`rbft doctor` checks it)") from None


def _agree_on_authentication(address: str) -> None:
    """Have Ray's client send its token where the cluster wants one."""
    answer = requests.get(f"{address.rstrip('/')}/api/authentication_mode", timeout=REQUEST_TIMEOUT_S)
    answer.raise_for_status()
    try:
        mode = answer.json()["authentication_mode"]
    except (ValueError, LookupError, TypeError):
        raise JobError(f"{address}: answers, but not as Ray does; give a dashboard's address, http://HOST:8265") from None
    if mode == "disabled":
        tell(f"{address}: takes jobs from whoever reaches it; `rbft doctor` says how to turn its token authentication on")
        return
    host = urlsplit(address)
    if host.scheme == "http" and host.hostname not in ("127.0.0.1", "localhost", "::1"):
        tell(f"{address}: the token goes there in the clear; `ray dashboard cluster.yaml` forwards the port over SSH instead")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not _has_token():
        raise JobError(
            f"{address}: wants a token, and there is none here; copy ~/.ray/auth_token from the head node, or name it in "
            "RAY_AUTH_TOKEN_PATH (RAY_AUTH_TOKEN serves as well)"
        )


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return os.path.isfile(path)


START_IT = "start the cluster, or forward its port: ray dashboard cluster.yaml"


def retried(ask: Callable[[], T], what: str, mend: str = START_IT, patience_s: float = READY_S) -> T:
    """What `ask()` gives; it is asked again for `patience_s` while the cluster is not ready.

    Raises `JobError` that says `what`, and `mend` if it never is ready; also if it refuses what is asked.
    """

    def say_once(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            tell(f"{what} yet ({_short(state.outcome.exception())}); trying for {patience_s:.0f} s")

    asking = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_not_ready),
        wait=tenacity.wait_exponential(multiplier=0.5, max=5),
        stop=tenacity.stop_after_delay(patience_s),
        before_sleep=say_once,
        reraise=True,
    )
    try:
        return asking(ask)
    except (RuntimeError, OSError) as error:
        raise JobError(f"{what} ({_short(error)})" + (f"; {mend}" if _is_not_ready(error) else "")) from None


def _is_not_ready(error: BaseException | None) -> bool:
    """Whether a head that is starting, or a connection that was cut, looks like this."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    if isinstance(error, (ConnectionError, requests.ConnectionError, requests.Timeout)):
        return True
    # "No available agent to submit job", and whatever else the head's own parts do not answer yet.
    return isinstance(error, RuntimeError) and "status code 5" in str(error)


def _short(error: BaseException | None) -> str:
    """The line of `error` that says most: of a trace of the head's, its last."""
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return "no connection" if isinstance(error, requests.ConnectionError) else "no answer in time"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def our_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs that were submitted to the cluster, the newest first."""
    submitted = [job for job in retried(client.list_jobs, "the cluster does not list its jobs") if job.submission_id]
    return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)


def is_over(job: JobDetails) -> bool:
    return bool(job.status.is_terminal())


def find_job(jobs: Sequence[JobDetails], wanted: str) -> JobDetails:
    """The job of that id, or the newest of the run of that name; raises `JobError` if there is none."""
    for job in jobs:
        if job.submission_id == wanted:
            return job
    for job in jobs:
        if (job.metadata or {}).get(NAME_KEY) == wanted:
            return job
    known = ", ".join(str(job.submission_id) for job in jobs[:5]) or "none"
    raise JobError(f"{wanted}: the cluster knows no such job or run ({known}); `rbft jobs` lists them. A new head knows no old ones")


def remind(client: JobSubmissionClient, job_id: str) -> None:
    """Have a head look after the jobs of the one before it.

    With GCS fault tolerance a new head knows them, but Ray 2.60 looks whether they live only once it is given a job: one that went with the
    old head would be running for ever. It is given the id of a job that it has, which it refuses; that is all.
    """
    with contextlib.suppress(RuntimeError):
        client.submit_job(entrypoint="true", submission_id=job_id)


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print the job's log until the job ends; its exit code. Ctrl-C leaves the job alone."""
    try:
        return asyncio.run(_follow(client, job_id))
    except KeyboardInterrupt:
        tell(f"\nthe job goes on; `rbft logs {job_id}` shows its log again, `rbft stop {job_id}` ends it")
        raise


async def _follow(client: JobSubmissionClient, job_id: str) -> int:
    log = _Log(client, job_id)
    answered = time.monotonic()
    while True:
        try:
            await log.print_new()
            job = await asyncio.to_thread(client.get_job_info, job_id)
            answered = time.monotonic()
            if is_over(job):
                await log.print_new()  # what came between the two
                return exit_code(job)
            await asyncio.to_thread(remind, client, job_id)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if "does not exist" in str(error):
                raise JobError(
                    f"{job_id}: the cluster does not know it any more, so that its head was started anew; submit the job again, it goes on "
                    "where it stopped"
                ) from None
            silence_s = time.monotonic() - answered
            if silence_s > REATTACH_S:
                raise JobError(f"{job_id}: no answer for {silence_s:.0f} s; `rbft logs {job_id}` shows its log again") from error
            tell(f"no connection ({_short(error)}); the job goes on, trying again to show its log")
            await asyncio.sleep(4)
        await asyncio.sleep(1)


class _Log:
    """A job's log, of which each character is printed once, however often it is asked for."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._num_printed = 0

    async def print_new(self) -> None:
        """Until the log ends, or is quiet for `QUIET_S`."""
        chunks = self._client.tail_job_logs(self._job_id)
        num_seen = 0
        try:
            while True:
                text = await asyncio.wait_for(anext(chunks), QUIET_S)
                new = text[max(0, self._num_printed - num_seen) :]
                num_seen += len(text)
                print(new, end="", flush=True)
                self._num_printed = max(self._num_printed, num_seen)
        except (StopAsyncIteration, TimeoutError, aiohttp.WSServerHandshakeError):  # the last: there is no such log, any more or yet
            return
        finally:
            await chunks.aclose()


def exit_code(job: JobDetails) -> int:
    """What `rbft submit` ends with: the job's own code; 130 if it was told to stop, 1 if it never ran or its node went."""
    status = str(job.status)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 130
    code = job.driver_exit_code
    if code is None:
        tell(f"{job.submission_id}: {status}: {' '.join(str(job.message or '').split())[-600:]}")
        return 1
    return 128 - code if code < 0 else code or 1


def stop(client: JobSubmissionClient, job: JobDetails) -> JobDetails:
    """Tell the job to stop and wait until it has; the job as it ended. Raises `JobError` if it does not."""
    job_id = str(job.submission_id)
    retried(lambda: client.stop_job(job_id), f"{job_id}: cannot be told to stop")
    deadline = time.monotonic() + STOP_WAIT_S + 60
    while not is_over(job):
        if time.monotonic() > deadline:
            raise JobError(f"{job_id}: still {job.status} after {STOP_WAIT_S + 60:.0f} s; see `rbft logs {job_id}`")
        time.sleep(1)
        job = retried(lambda: client.get_job_info(job_id), f"{job_id}: the cluster does not tell how it is")
    return job
