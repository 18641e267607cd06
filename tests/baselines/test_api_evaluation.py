"""Videos to predictions by an API model: real files, real decoding, and a server on loopback that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbft import rows
from rbft.baselines.answers import answer_schema, usage
from rbft.baselines.api_evaluation import ask_about_videos
from rbft.config import RunConfig
from rbft.errors import ConfigError, JobError, OutOfQuotaError
from rbft.evaluation.predictions import predictions_from_table
from rbft.records import Example, Prediction, prediction_schema
from tests.openai_server import Reply, Server, completion, failure
from tests.samples import TASK, write_video

KEY = "key-77aa01"
NORMAL = completion("Normal.")
REFUSAL = "I'm sorry, I can't assist with that."


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.replies = [NORMAL]
    yield server
    server.close()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("videos")
    return [Example(f"v{n}", str(write_video(folder / f"secret-name-{n}.mp4", seed=n)), label="abnormal") for n in range(4)]


class Evaluation:
    """An API model asked about videos, as a run's evaluation does it."""

    def __init__(self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        self._server = server
        self._root = folder
        self.done: list[tuple[int, int]] = []

    def config(self, **settings: Any) -> RunConfig:
        model = {"name": "asked", "model": "m", "url": self._server.url, "api_key_env": "SOME_KEY", "max_retries": 2, **settings}
        return RunConfig.model_validate(
            {
                "name": "run",
                "output_dir": str(self._root),
                "task": TASK.model_dump(),
                "data": {"folder": "videos"},
                "video": {"max_pixels": 12_544},
                "model": {"path": "model"},
                "engine": {"decode_workers": 1, "rows_per_block": 2},
                "evaluation": {"systems": [], "api_models": [model]},
            }
        )

    def ask(self, examples: list[Example], to: str = "predictions", **settings: Any) -> None:
        config, folder = self.config(**settings), f"{self._root}/{to}"
        done = rows.done_ids(folder, prediction_schema())
        pending = [example for example in examples if example.id not in done]
        on_done = lambda num, errors: self.done.append((num, errors))  # noqa: E731
        asyncio.run(ask_about_videos(config, config.evaluation.api_models[0], pending, folder, on_done))

    def predictions(self, of: str = "predictions") -> dict[str, Prediction]:
        table = rows.read_parts(f"{self._root}/{of}", prediction_schema())
        return {row.id: row for row in predictions_from_table(table, of)}

    def usage(self, of: str = "predictions", **settings: Any) -> dict[str, Any]:
        (model,) = self.config(**settings).evaluation.api_models
        return usage(model, rows.read_parts(f"{self._root}/{of}/answers", answer_schema()))


@pytest.fixture
def evaluation(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    return Evaluation(server, tmp_path, monkeypatch)


def test_every_video_gets_a_row_and_its_tokens_are_counted(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    missing = Example("missing", "/no/such/video.mp4", label="normal")
    evaluation.ask([*examples, missing], max_concurrency=1)
    found = evaluation.predictions()
    assert found["missing"].error_code == "video_missing"
    for example in examples:
        row = found[example.id]
        assert (row.label, row.generated, row.generated_label) == ("abnormal", "Normal.", "normal")
        assert (row.predicted, row.probabilities, row.logprobs, row.error_code) == (None, {}, {}, None)
    used = evaluation.usage(price_per_million_input_tokens=1.0, price_per_million_output_tokens=10.0)
    assert (used["num_videos"], used["errors"]) == (5, {"video_missing": 1})
    assert (used["num_input_tokens"], used["num_output_tokens"], used["cost_usd"]) == (84, 16, pytest.approx((84 + 160) / 1e6))
    assert sorted(evaluation.done) == [(1, 0)] * 4 + [(1, 1)]


def test_a_second_run_sends_nothing_and_needs_no_key(
    server: Server, evaluation: Evaluation, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replies = [NORMAL, completion(REFUSAL), completion("A", "content_filter"), NORMAL]
    evaluation.ask(examples, max_concurrency=1)
    assert len(server.asked) == 4 and len(server.trials) == 1
    monkeypatch.delenv("SOME_KEY")
    evaluation.ask(examples, to="again")
    assert len(server.asked) == 4 and len(server.trials) == 1
    assert evaluation.predictions("again") == evaluation.predictions()
    prices: dict[str, Any] = {"price_per_million_input_tokens": 1.0, "price_per_million_output_tokens": 1.0}
    first, again = evaluation.usage(**prices), evaluation.usage("again", **prices)
    assert again["num_from_cache"] == 4 and again["new_cost_usd"] == 0
    assert again["cost_usd"] == first["cost_usd"] == first["new_cost_usd"] > 0


def test_what_was_answered_before_an_early_end_is_not_asked_again(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    quota: Reply = (429, {}, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    server.replies = [NORMAL, NORMAL, NORMAL, quota]
    with pytest.raises(OutOfQuotaError, match=r"nothing left to pay with.*top it up"):
        evaluation.ask(examples, max_concurrency=1, max_retries=0)
    assert len(evaluation.predictions()) == 3  # two of a part, and the one after it
    server.replies = [NORMAL]
    evaluation.ask(examples, to="elsewhere")
    assert len(server.asked) == 5  # the fourth, again
    assert len(evaluation.predictions("elsewhere")) == 4


KILLED = """
import asyncio, sys
from rbft.baselines.api_evaluation import ask_about_videos
from rbft.config import RunConfig
from rbft.records import Example
config = RunConfig.model_validate_json(sys.argv[1])
examples = [Example(f"v{n}", uri, label="abnormal") for n, uri in enumerate(sys.argv[3:])]
asyncio.run(ask_about_videos(config, config.evaluation.api_models[0], examples, sys.argv[2], lambda *_: None))
"""


def test_a_kill_loses_no_answer_that_was_there(server: Server, evaluation: Evaluation, examples: list[Example], tmp_path: Path) -> None:
    killed = threading.Event()
    server.on_request = lambda: killed.wait(60) if len(server.asked) == 2 else None
    config = evaluation.config(max_concurrency=1)
    arguments = [config.model_dump_json(), str(tmp_path / "predictions"), *(example.uri for example in examples)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
    try:
        deadline = time.monotonic() + 60
        while len(server.asked) < 2 or not list(Path(config.api_cache).glob("*/*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
        killed.set()
    assert evaluation.predictions() == {}  # a part is of two videos here
    evaluation.ask(examples)
    assert len(server.asked) == 2 + 3 and evaluation.usage()["num_from_cache"] == 1


def test_refusals_are_rows_of_their_own_code_with_what_was_said(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    filtered: Reply = (400, {}, {"error": {"message": "flagged", "code": "content_policy_violation"}})
    server.replies = [completion(REFUSAL), completion(None, refusal="I won't."), completion(None, "content_filter"), filtered]
    evaluation.ask(examples, max_concurrency=1)
    found = list(evaluation.predictions().values())
    assert [(row.error_code, row.predicted, row.generated_label) for row in found] == [("model_refused", None, None)] * 4
    assert {REFUSAL, "I won't."} <= {row.generated for row in found}
    used = evaluation.usage()
    assert (used["num_refusals"], used["errors"]) == (4, {})
    evaluation.ask(examples, to="again")
    assert len(server.asked) == 4  # a refusal is an answer, and kept


def test_an_answer_that_apologises_and_names_a_label_is_an_answer(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.replies = [completion("I'm sorry, it is dark; abnormal.")]
    evaluation.ask(examples[:1])
    (row,) = evaluation.predictions().values()
    assert (row.generated_label, row.error_code) == ("abnormal", None)


def test_malformed_answers_are_error_rows_and_asked_again(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.replies = [(200, {}, '{"choices": [{"mess'), (200, {}, {"choices": []}), completion(""), completion(None, "length")]
    evaluation.ask(examples, max_concurrency=1)
    found = list(evaluation.predictions().values())
    assert [row.error_code for row in found] == ["server_error"] * 4
    messages = " ".join(str(row.error_message) for row in found)
    assert "no chat completion" in messages and "raise max_new_tokens" in messages
    server.replies = [NORMAL]
    evaluation.ask(examples, to="again")
    assert len(server.asked) == 4 + 3  # the one that had used up its tokens would do so again


def test_busy_and_failing_servers_are_asked_again(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.replies = [failure(429, Retry_After="1.2"), failure(500, Retry_After="0.01"), NORMAL]
    evaluation.ask(examples[:1])
    (row,) = evaluation.predictions().values()
    assert row.generated_label == "normal" and len(server.asked) == 3
    assert server.arrived_s[1] - server.arrived_s[0] >= 1.2


def test_a_request_that_is_refused_is_not_asked_again(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.replies = [failure(413, "too large")]
    evaluation.ask(examples[:1])
    (row,) = evaluation.predictions().values()
    assert row.error_code == "server_refused" and len(server.asked) == 1


def test_a_server_that_hangs_costs_its_video_only(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    given_up = threading.Event()
    server.on_request = lambda: given_up.wait(60) if len(server.asked) == 1 else None
    try:
        evaluation.ask(examples[:2], timeout_s=0.5, max_retries=0, max_concurrency=1)
    finally:
        given_up.set()
    assert sorted(str(row.error_code) for row in evaluation.predictions().values()) == ["None", "server_error"]


def test_a_wrong_key_ends_it_at_once_and_is_shown_nowhere(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.trial = failure(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(ConfigError, match="check the key") as caught:
        evaluation.ask(examples)
    assert KEY not in str(caught.value) and server.asked == [] and evaluation.predictions() == {}


def test_no_server_ends_it_at_once(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    with pytest.raises(JobError, match="cannot be reached"):
        evaluation.ask(examples, url="http://127.0.0.1:9/v1", max_retries=0)


def test_neither_key_nor_name_nor_label_goes_where_it_does_not_belong(
    server: Server, evaluation: Evaluation, examples: list[Example], tmp_path: Path
) -> None:
    server.replies = [completion(f"normal, says {KEY}"), failure(400, f"you sent {KEY}")]
    evaluation.ask(examples[:2], max_concurrency=1)
    assert server.keys == {f"Bearer {KEY}"}
    sent = json.dumps(server.asked)
    assert not any(word in sent for word in (KEY, "secret-name", '"v0"', '"abnormal"'))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"normal, says" in written and KEY.encode() not in written
    assert all(KEY not in str(row) for row in evaluation.predictions().values())


def test_requests_begin_no_faster_than_allowed(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    started = time.monotonic()
    evaluation.ask(examples, requests_per_minute=240, max_concurrency=4)
    # A quarter of a second apart. A busy machine makes them later, and none of them earlier.
    assert all(arrived_s >= started + number * 0.25 for number, arrived_s in enumerate(sorted(server.arrived_s)))


def test_tries_after_a_failure_keep_to_the_limit_too(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    server.replies = [failure(500, Retry_After="0.01"), NORMAL]
    started = time.monotonic()
    evaluation.ask(examples[:1], requests_per_minute=60)
    _, second_s = server.arrived_s
    assert second_s >= started + 1.0


def test_likely_tokens_become_probabilities(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    likely = [{"token": "normal", "logprob": -0.9163}, {"token": "ab", "logprob": -1.6094}]
    status, headers, body = completion("normal")
    body["choices"][0]["logprobs"] = {"content": [{**likely[0], "top_logprobs": likely}]}
    server.replies = [(status, headers, body)]
    evaluation.ask(examples[:1], top_logprobs=5)
    (asked,) = server.asked
    assert (asked["logprobs"], asked["top_logprobs"], asked["temperature"], asked["max_tokens"]) == (True, 5, 0.0, 16)
    (row,) = evaluation.predictions().values()
    assert row.predicted == row.generated_label == "normal"
    assert row.probabilities == pytest.approx({"normal": 2 / 3, "abnormal": 1 / 3}, abs=1e-4)
    evaluation.ask(examples[:1], to="again", top_logprobs=5)
    assert evaluation.predictions("again") == evaluation.predictions() and len(server.asked) == 1


def test_a_model_may_be_shown_fewer_frames_and_say_more(server: Server, evaluation: Evaluation, examples: list[Example]) -> None:
    evaluation.ask(examples[:1], max_frames=2, max_new_tokens=99)
    (asked,) = server.asked
    images = [part for part in asked["messages"][0]["content"] if part["type"] == "image_url"]
    assert (len(images), asked["max_tokens"]) == (2, 99)
