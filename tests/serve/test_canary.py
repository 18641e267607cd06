"""Ready is what answers right: canaries, and the self-test where there are none."""

import asyncio
from pathlib import Path

import httpx
import pytest

from rbft.api import ClassifyAnswer, ModelVersion
from rbft.config import Canary, ServeConfig, load_config
from rbft.engines.base import Sampling
from rbft.engines.hf import HFEngine
from rbft.errors import EngineError, EngineGoneError, NotReadyError, VideoDecodeError
from rbft.records import Clip
from rbft.video.pool import DecodePool
from serve.app import build_app
from serve.canary import Readiness, write_clip
from serve.classifier import VideoClassifier
from serve.model import ServedModel
from tests.serve.samples import SPEC, TASK
from tests.serve.scripted import ScriptedClassifier, raising


class Labelling(ScriptedClassifier):
    """Answers with `label` and these probabilities."""

    def __init__(self, label: str = "abnormal", probability: float = 0.75) -> None:
        super().__init__()
        self.label, self.probability = label, probability

    async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
        answer = await super().classify(clip, context, threshold)
        probabilities = {"abnormal": self.probability, "normal": 1 - self.probability}
        return answer.model_copy(update={"label": self.label, "probabilities": probabilities})


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(video=str(write_clip(tmp_path / "canary.mp4")), label="abnormal")


def test_it_is_ready_when_every_canary_has_its_label_and_looks_at_them_once(canary: Canary) -> None:
    classifier = Labelling()
    readiness = Readiness(classifier, (canary, canary))

    async def scenario() -> None:
        await asyncio.gather(*(readiness.check() for _ in range(5)))
        classifier.act = raising(EngineGoneError("gone"))
        with pytest.raises(EngineGoneError):
            await readiness.check()

    asyncio.run(scenario())
    assert [str(path) for path in classifier.paths] == [canary.video] * 2


def test_one_wrong_label_and_it_is_not_ready_and_says_what_was_wrong(canary: Canary, caplog: pytest.LogCaptureFixture) -> None:
    readiness = Readiness(Labelling("normal"), (canary,))
    with pytest.raises(NotReadyError, match=r"canary\.mp4 is abnormal, and the model says normal \(abnormal 0\.750, normal 0\.250\)"):
        asyncio.run(readiness.check())
    assert "not ready: the canary" in caplog.text


@pytest.mark.parametrize("error", [VideoDecodeError("cut short"), EngineError("too long")])
def test_a_canary_that_cannot_be_classified_says_why(canary: Canary, error: Exception) -> None:
    classifier = Labelling()
    classifier.act = raising(error)
    with pytest.raises(NotReadyError, match=f"cannot be classified: {error}"):
        asyncio.run(Readiness(classifier, (canary,)).check())


def test_without_canaries_a_drawn_clip_must_get_probabilities() -> None:
    classifier = Labelling()
    asyncio.run(Readiness(classifier, ()).check())
    assert len(classifier.paths) == 1 and not classifier.paths[0].exists()
    with pytest.raises(NotReadyError, match="are no numbers"):
        asyncio.run(Readiness(Labelling(probability=float("nan")), ()).check())


def test_the_drawn_clip_goes_through_the_real_decoder_and_a_real_model(
    engine: HFEngine, decoders: DecodePool, trained_folder: Path
) -> None:
    model = ServedModel(trained_folder, ModelVersion(name="tiny", fingerprint="f"), TASK, SPEC, {})
    asyncio.run(Readiness(VideoClassifier(engine, decoders, model, Sampling(max_new_tokens=1)), ()).check())


def test_readyz_is_503_until_the_canary_has_its_label_and_tells_strangers_no_paths(canary: Canary) -> None:
    classifier = Labelling("normal")
    app = build_app(classifier, ServeConfig(canary=(canary,)), 1, 1)

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            before = await http.get("/readyz")
            classifier.label = "abnormal"
            return [before, await http.get("/readyz"), await http.get("/healthz")]

    before, after, health = asyncio.run(scenario())
    assert (before.status_code, before.json()["code"], after.status_code, health.status_code) == (503, "not_ready", 200, 200)
    assert "retry-after" in before.headers and canary.video not in before.text and "0.750" not in before.text


def test_one_canary_needs_no_list_and_its_path_is_relative_to_the_file(repository: Path, tmp_path: Path) -> None:
    text = (repository / "configs" / "miniature.yaml").read_text()
    path = tmp_path / "run.yaml"
    start = text.partition("\nserve:\n")[0].replace("tasks/miniature.yaml", str(repository / "configs/tasks/miniature.yaml"))
    path.write_text(f"{start}\nserve:\n  canary: {{video: clips/a.mp4, label: abnormal}}\n")
    assert load_config(path).serve.canary == (Canary(video=str(tmp_path / "clips/a.mp4"), label="abnormal"),)
    path.write_text(f"{start}\nserve:\n  canary:\n    - {{video: a.mp4, label: abnormal}}\n    - {{video: /b.mp4, label: normal}}\n")
    assert [canary.video for canary in load_config(path).serve.canary] == [str(tmp_path / "a.mp4"), "/b.mp4"]
