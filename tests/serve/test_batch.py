"""Many videos in one request: the order, what befalls one and not the others, and the limits."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rbft import errors
from rbft.api import BatchAnswer, ClassifyAnswer
from rbft.client import AsyncClient, Client
from tests.serve.scripted import ScriptedClassifier, client_of, raising, request

ROUTE = "/v1/classify/batch"


def _files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("video", ("../../x", content)) for content in contents]


class Picky(ScriptedClassifier):
    """Refuses videos of one byte, falls over those of two, and hangs on those of three; finishes the first ones last."""

    async def look(self, path: Path) -> Any:
        clip = await super().look(path)
        num_bytes = self.num_bytes[-1]
        if num_bytes == 1:
            raise errors.VideoDecodeError(f"{path}: cut short")
        if num_bytes == 2:
            raise ValueError("a bug")
        if num_bytes == 3:
            await asyncio.Event().wait()
        await asyncio.sleep(max(0.0, 0.3 - num_bytes / 100))
        return clip


def test_every_file_has_its_answer_or_its_problem_in_the_order_they_were_sent() -> None:
    classifier = Picky()
    files = [*_files(bytes(4), bytes(1), bytes(20), b"", bytes(30)), ("context", (None, b"door"))]
    response = request(classifier, "POST", ROUTE, files=files)
    answer = BatchAnswer.model_validate_json(response.content)
    assert response.status_code == 200 and answer.request_id == response.headers["x-request-id"]
    assert [item.status for item in answer.items] == [200, 422, 200, 200, 200]
    problem = answer.items[1].problem
    assert problem is not None and (problem.code, problem.detail) == ("video_decode", "the upload: cut short")
    answers = [item.answer for item in answer.items if item.answer is not None]
    assert [item.label for item in answers] == ["door"] * 4 and len({item.video_id for item in answers}) == 4
    assert all(item.timing_s.keys() == {"receive", "queue", "decode", "engine", "total"} for item in answers)
    assert classifier.paths[0].name.startswith("rbft-upload-")  # not as the client called it


def test_a_mistake_of_ours_is_a_500_of_the_whole() -> None:
    response = request(Picky(), "POST", ROUTE, files=_files(bytes(4), bytes(2), bytes(4)))
    assert (response.status_code, response.json()["code"]) == (500, "service")


def test_the_time_limit_is_that_of_the_whole_and_what_was_done_in_it_is_answered() -> None:
    files = _files(bytes(50), *([bytes(3)] * 9))
    response = request(Picky(), "POST", ROUTE, {"request_timeout_s": 2.0}, files=files)
    assert [item["status"] for item in response.json()["items"]] == [200] + [504] * 9


def test_one_request_takes_few_places_at_a_time() -> None:
    gate, most = asyncio.Event(), 0

    async def scenario() -> int:
        classifier = ScriptedClassifier(gate.wait)  # type: ignore[arg-type, return-value]
        async with client_of(classifier, max_running=64) as http:
            batch = asyncio.create_task(http.post(ROUTE, files=_files(*[bytes(9)] * 12)))
            while len(classifier.paths) < 4:
                await asyncio.sleep(0.01)
            num_begun = len(classifier.paths)
            gate.set()
            assert len((await batch).json()["items"]) == 12
            return num_begun

    most = asyncio.run(scenario())
    assert most == 4


@pytest.mark.parametrize(
    ("sent", "config", "status", "code"),
    [
        ({"files": _files(*[b"x"] * 4)}, {"max_batch_files": 3}, 400, "request"),
        ({"files": _files(bytes(9_000), bytes(9_000))}, {"max_upload_bytes": 10_000}, 413, "upload_too_large"),
        ({"files": {"film": b"x"}}, {}, 422, "request"),
        ({"files": {"video": (None, b"text")}}, {}, 422, "request"),
        ({"files": _files(b"x"), "data": {"top_k": "0"}}, {}, 422, "request"),
        ({"json": {"url": "https://example.org/a.mp4"}}, {}, 422, "request"),
        ({"content": b"x"}, {}, 415, "request"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(sent: dict[str, Any], config: dict[str, Any], status: int, code: str) -> None:
    classifier = ScriptedClassifier()
    response = request(classifier, "POST", ROUTE, config, **sent)
    assert (response.status_code, response.json()["code"]) == (status, code) and classifier.paths == []


def test_every_file_may_wait_in_vain() -> None:
    classifier = ScriptedClassifier(raising(errors.OverloadedError("try again later")))
    items = request(classifier, "POST", ROUTE, files=_files(b"x", b"y")).json()["items"]
    assert [(item["status"], item["problem"]["code"]) for item in items] == [(503, "overloaded")] * 2


def test_a_client_asks_about_many_files_in_as_many_requests_as_it_takes(url: str, clip_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip_path.read_bytes()[:400])
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(950_000))
    paths = [clip_path, broken, large, *[clip_path] * 33]

    async def asynchronously() -> list[ClassifyAnswer | errors.RBFTError]:
        async with AsyncClient(url) as client:
            return await client.classify_many(paths[:2])

    with Client(url) as client:
        alone = client.classify(clip_path)
        found = client.classify_many(paths)
        with pytest.raises(errors.VideoMissingError, match=r"absent\.mp4"):
            client.classify_many([clip_path, tmp_path / "absent.mp4"])
    assert [type(item) for item in found[1:3]] == [errors.VideoDecodeError, errors.VideoFormatError]
    answers = [item for item in found if isinstance(item, ClassifyAnswer)]
    assert len(answers) == 34 and all(item.probabilities == pytest.approx(alone.probabilities, abs=1e-6) for item in answers)
    assert [type(item) for item in asyncio.run(asynchronously())] == [ClassifyAnswer, errors.VideoDecodeError]
