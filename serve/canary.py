"""Whether the service answers right, and not only at all: clips whose label is known, looked at before it is called ready."""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rbft.api import ClassifyAnswer
from rbft.config import Canary
from rbft.errors import EngineGoneError, NotReadyError, RBFTError
from serve.service import Classifier

logger = logging.getLogger(__name__)


class Readiness:
    """Ready once every canary has got its label, or, where there is none, a clip of our own a label at all; and while the engine lives."""

    def __init__(self, classifier: Classifier, canaries: tuple[Canary, ...]) -> None:
        self._classifier = classifier
        self._canaries = canaries
        self._has_passed = False
        self.is_ready = False
        """What the last check found."""
        self._one_at_a_time = asyncio.Lock()

    async def check(self) -> None:
        """Raises `NotReadyError`, or what the engine's own check raises."""
        try:
            async with self._one_at_a_time:
                if not self._has_passed:
                    await self._test()
                    self._has_passed = True
            await self._classifier.check_health()
        except Exception:
            self.is_ready = False
            raise
        self.is_ready = True

    async def _test(self) -> None:
        """Decoder, engine and calibration, as for any request."""
        if not self._canaries:
            with tempfile.TemporaryDirectory(prefix="rbft-canary-") as folder:
                await self._answer(write_clip(Path(folder) / "clip.mp4"), "the clip of the self-test")
            logger.info("ready: the self-test passed; serve.canary would also tell whether labels are right")
        for canary in self._canaries:
            answer = await self._answer(Path(canary.video), f"the canary {canary.video}")
            if answer.label != canary.label:
                told = ", ".join(f"{label} {probability:.3f}" for label, probability in answer.probabilities.items())
                raise _not_ready(
                    f"the canary {canary.video} is {canary.label}, and the model says {answer.label} ({told}); is it the right model? Else "
                    "correct serve.canary"
                )
            logger.info("ready: the canary video=%s got its label=%s", canary.video, canary.label)

    async def _answer(self, path: Path, name: str) -> ClassifyAnswer:
        try:
            answer = await self._classifier.classify(await self._classifier.look(path), None, None)
        except EngineGoneError:
            raise
        except RBFTError as error:
            raise _not_ready(f"{name} cannot be classified: {error}") from error
        if not all(map(math.isfinite, answer.probabilities.values())):
            raise _not_ready(f"{name} got probabilities that are no numbers; the model's weights are broken, or do not fit its dtype")
        return answer


def write_clip(path: Path) -> Path:
    """Four seconds of a square that moves, in MPEG-4, in the file `path`; returns `path`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, 2)
        for step in range(8):
            frame_HWC = np.full((112, 112, 3), 64, np.uint8)
            frame_HWC[32:64, 8 * step : 8 * step + 32] = (200, 120, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def _not_ready(message: str) -> NotReadyError:
    logger.error("not ready: %s", message)
    return NotReadyError(message)
