"""The whole service but Ray: the client, a socket, the routes, the decoder's child process and a real (tiny, random) model."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rbft import errors
from rbft.api import ClassifyAnswer, RationaleAnswer, RationaleStart, TaskAnswer, TextPiece
from rbft.client import AsyncClient, Client, Said
from rbft.engines.hf import HFEngine
from rbft.engines.labels import probabilities
from rbft.video.pool import DecodePool
from tests.serve.samples import SPEC, TASK


@pytest.mark.parametrize("context", [None, "At the front door"])
def test_a_served_video_gets_the_probabilities_that_the_engine_gives_its_clip(
    url: str, clip_path: Path, engine: HFEngine, decoders: DecodePool, context: str | None
) -> None:
    async def directly() -> dict[str, float]:
        clip = await decoders.decode_async(str(clip_path), SPEC)
        return probabilities(await engine.score(clip, TASK.question_messages(context), TASK.labels))

    with Client(url) as client:
        answer = client.classify(clip_path, context)
    assert answer.probabilities == pytest.approx(asyncio.run(directly()), abs=1e-6)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.probabilities[answer.label] == max(answer.probabilities.values())
    assert (answer.video.num_frames, answer.video.fps) == (4, 1.0)
    assert answer.timing_s.keys() == {"receive", "queue", "decode", "engine", "total"}


def test_a_rationale_is_what_the_model_writes_to_the_rationale_prompt(url: str, clip_path: Path) -> None:
    with Client(url) as client:
        answer = client.rationale(clip_path)
    assert answer.num_tokens <= 4 and answer.finish_reason in ("stop", "length")
    assert answer.sections == TASK.parse_sections(answer.text)


def test_requests_at_the_same_time_get_their_own_answers(url: str, clip_path: Path) -> None:
    contexts = [f"camera {number}" for number in range(4)]
    with Client(url) as client:
        alone = [client.classify(clip_path, context).probabilities for context in contexts]
        with ThreadPoolExecutor(4) as threads:
            together = [answer.probabilities for answer in threads.map(lambda context: client.classify(clip_path, context), contexts)]
    assert together == [pytest.approx(by_label, abs=1e-6) for by_label in alone]
    assert len({tuple(by_label.items()) for by_label in alone}) == 4


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", errors.VideoEmptyError),
        (b"these are words, not pictures\n" * 20, errors.VideoFormatError),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n", errors.VideoFormatError),
        (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', errors.VideoFormatError),
        (b"x" * 1_000_001, errors.UploadTooLargeError),
    ],
    ids=["empty", "text", "HLS", "DASH", "too large"],
)
def test_a_bad_upload_raises_the_error_of_its_kind_at_the_client(
    url: str, tmp_path: Path, content: bytes, error: type[errors.RBFTError]
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with Client(url) as client, pytest.raises(errors.RBFTError) as raised:
        client.classify(path)
    assert type(raised.value) is error
    assert "/tmp" not in str(raised.value)


@pytest.mark.parametrize("kind", ["truncated", "ffconcat"])
def test_an_upload_that_cannot_be_opened_raises_a_video_error(url: str, clip_path: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.mp4"
    # The list names a video that is really there: a decoder that followed it would give an answer.
    content = {"truncated": clip_path.read_bytes()[:700], "ffconcat": f"ffconcat version 1.0\nfile {clip_path}\n".encode()}
    path.write_bytes(content[kind])
    with Client(url) as client, pytest.raises(errors.VideoError):
        client.classify(path)


def test_the_client_says_when_there_is_no_file_or_no_service(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as client:
        with pytest.raises(errors.VideoMissingError, match=r"absent\.mp4"):
            client.classify(tmp_path / "absent.mp4")
        with pytest.raises(errors.ServiceError, match="cannot be reached"):
            client.task()


def test_why_needs_no_second_upload_and_says_the_same_in_pieces(url: str, clip_path: Path) -> None:
    with Client(url) as client:
        answer = client.classify(clip_path, with_rationale=True)
        whole = client.rationale(video_id=answer.video_id)
        start, *pieces, end = client.stream_rationale(video_id=answer.video_id)
    assert isinstance(start, RationaleStart) and isinstance(end, RationaleAnswer)
    assert answer.rationale is not None and whole.text == end.text == answer.rationale.text
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == end.text
    assert whole.gates.keys() == end.gates.keys() and "agrees_with_label" in whole.gates
    assert "decode" not in whole.timing_s


def test_the_client_for_an_event_loop_says_the_same(url: str, clip_path: Path) -> None:
    async def scenario() -> tuple[ClassifyAnswer, RationaleAnswer, list[Said], TaskAnswer]:
        async with AsyncClient(url) as client:
            answer = await client.classify(clip_path, "At the door")
            why = await client.rationale(video_id=answer.video_id)
            return answer, why, [said async for said in client.stream_rationale(clip_path, "At the door")], await client.task()

    answer, why, said, task = asyncio.run(scenario())
    with Client(url) as client:
        assert client.classify(clip_path, "At the door").probabilities == pytest.approx(answer.probabilities, abs=1e-6)
        assert client.task() == task
    assert isinstance(said[-1], RationaleAnswer) and said[-1].text == why.text


def test_the_client_reads_the_task(url: str) -> None:
    with Client(url) as client:
        assert client.task().labels == TASK.labels
