"""What is answered from the engine's likelihoods: by the likeliest label, by a calibration, by the request's threshold."""

import asyncio
import errno
import math
import os
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer
from rbft.engines.base import Answer, Generated, Sampling
from rbft.errors import DecoderCrashError
from rbft.evaluation.calibration import Calibration, apply_calibration
from rbft.records import Clip, Prediction
from rbft.task import Message, Task
from rbft.video.pool import DecodePool
from serve.classifier import VideoClassifier
from serve.clips import Seen
from serve.model import ServedModel
from tests.serve.samples import SPEC, TASK

CLIP = Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 8.0, "pyav")
LOGPROBS = {"normal": -0.5, "abnormal": -1.0}


class SayingEngine:
    """Has fixed likelihoods, and says fixed texts."""

    def __init__(self, texts: Sequence[str] = ("",)) -> None:
        self.texts = texts

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        raise NotImplementedError

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        for number, text in enumerate(self.texts, 1):
            yield Generated(text, 9, number, "stop" if number == len(self.texts) else "", 4)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        return LOGPROBS

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise NotImplementedError

    async def check_health(self) -> None: ...

    def close(self) -> None: ...


def _classifier(
    calibration: Calibration | None = None, texts: Sequence[str] = ("",), task: Task = TASK, decoders: DecodePool | None = None
) -> VideoClassifier:
    model = ServedModel(Path(), ModelVersion(name="m", fingerprint="f"), task, SPEC, {}, calibration)
    return VideoClassifier(SayingEngine(texts), decoders or DecodePool(1), model, Sampling(8))


def _classified(calibration: Calibration | None = None, threshold: float | None = None) -> ClassifyAnswer:
    return asyncio.run(_classifier(calibration).classify(CLIP, None, threshold))


def _calibration(threshold: float | None) -> Calibration:
    return Calibration(labels=TASK.labels, temperature=2.0, threshold=threshold, num_clips=9, log_loss_before=1.0, log_loss_after=0.9)


def test_without_a_calibration_the_likeliest_label_is_the_answer() -> None:
    answer = _classified()
    assert (answer.label, list(answer.probabilities)) == ("normal", ["normal", "abnormal"])
    assert answer.probabilities["normal"] == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert (answer.calibration, answer.threshold) == (None, None)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.6])
def test_calibrated_answers_are_those_of_the_report_and_say_so(threshold: float | None) -> None:
    calibration = _calibration(threshold)
    answer = _classified(calibration)
    bare = _classified().probabilities
    (reported,) = apply_calibration([Prediction("a", None, None, bare, LOGPROBS)], calibration)
    assert answer.probabilities == pytest.approx(reported.probabilities) and answer.label == reported.predicted
    assert answer.probabilities["normal"] == pytest.approx(1 / (1 + math.exp(-0.25)))
    assert answer.calibration is not None and (answer.calibration.temperature, answer.threshold) == (2.0, threshold)


@pytest.mark.parametrize(("threshold", "label"), [(0.3, "abnormal"), (0.9, "normal")])
def test_the_requests_threshold_goes_before_all_others(threshold: float, label: str) -> None:
    for calibration in (None, _calibration(0.5)):
        answer = _classified(calibration, threshold)
        assert (answer.label, answer.threshold) == (label, threshold)


def _explained(texts: Sequence[str], label: str | None = None, task: Task = TASK) -> list[str | RationaleAnswer]:
    async def explain() -> list[str | RationaleAnswer]:
        return [piece async for piece in _classifier(texts=texts, task=task).explain(Seen(CLIP, None, label))]

    return asyncio.run(explain())


def test_pieces_make_the_whole_text() -> None:
    *pieces, answer = _explained(["", "Sce", "Scene:", "Scene:", "Scene: a room"])
    assert pieces == ["Sce", "ne:", " a room"]
    assert isinstance(answer, RationaleAnswer)
    assert (answer.text, answer.sections) == ("Scene: a room", {"Scene": "a room"})
    assert (answer.num_tokens, answer.num_prompt_tokens, answer.num_cached_tokens, answer.finish_reason) == (5, 9, 4, "stop")


def test_a_rationale_tells_which_gates_it_passes() -> None:
    *_, fine = _explained(["Scene: a quiet room with a chair"])
    *_, bad = _explained(["it is abnormal"])
    assert isinstance(fine, RationaleAnswer) and isinstance(bad, RationaleAnswer)
    assert all(fine.gates.values()) and "agrees_with_label" not in fine.gates
    assert {gate for gate, passes in bad.gates.items() if not passes} == {"has_sections", "names_no_label"}


def test_a_rationale_is_held_against_the_label_that_was_answered() -> None:
    concerned = TASK.model_copy(update={"concern_labels": ("abnormal",)})
    for label, agrees in [("abnormal", False), ("normal", True)]:
        *_, answer = _explained(["Scene: a room, nothing unusual"], label, concerned)
        assert isinstance(answer, RationaleAnswer) and answer.gates["agrees_with_label"] == agrees


async def _looked(killed: Path, then: Path) -> Clip:
    """What `look` gives of the FIFO `killed`, whose decoder is killed when it has opened it; `then` lies in its place by that time."""
    with DecodePool(1, 60.0) as decoders:
        classifier = _classifier(decoders=decoders)
        others = set(psutil.Process().children())
        look = asyncio.ensure_future(classifier.look(killed))
        for after in (then, None):
            try:
                writer = await asyncio.to_thread(_once_read, killed)
            except FileExistsError:  # a file, and no FIFO any more: it can be decoded
                break
            if after is not None:
                os.replace(after, killed)
            (child,) = set(psutil.Process().children()) - others
            child.kill()
            os.close(writer)
        return await look


def _once_read(path: Path) -> int:
    """The end to write to, of a FIFO that somebody reads."""
    deadline = time.monotonic() + 60
    while True:
        if not path.is_fifo():
            raise FileExistsError(path)
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_a_video_whose_decoder_was_killed_is_decoded_once_more(tmp_path: Path, clip_path: Path) -> None:
    os.mkfifo(tmp_path / "video")
    (tmp_path / "sound").write_bytes(clip_path.read_bytes())
    assert asyncio.run(_looked(tmp_path / "video", tmp_path / "sound")).num_frames == 4


def test_a_video_that_kills_two_decoders_is_refused(tmp_path: Path) -> None:
    for name in ("video", "again"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DecoderCrashError, match="SIGKILL"):
        asyncio.run(_looked(tmp_path / "video", tmp_path / "again"))
