"""The real thing: Ray Serve, its proxy, a replica with vLLM and decoders, on the miniature's base model."""

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from rbft import artifacts, errors
from rbft.api import RationaleAnswer, RationaleStart, TextPiece
from rbft.client import Client
from rbft.config import RunConfig, load_config
from rbft.engines.hf import HFEngine
from rbft.engines.labels import probabilities
from rbft.keys import add_key
from rbft.video.pool import DecodePool
from serve.attention import AttentionModel
from serve.model import ServedModel
from tests.integration.conftest import RayCluster
from tests.serve.samples import write_clip
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(600)

LIMIT = "serve.max_upload_bytes=1000000"


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "square.mp4", seconds=8)


@pytest.fixture(scope="module")
def config(repository: Path) -> RunConfig:
    return load_config(repository / "configs" / "miniature.yaml", [LIMIT])


@pytest.fixture(scope="module")
def client(ray_cluster: RayCluster, repository: Path, miniature_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client, with its key, of the service that the command deployed on the cluster."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    key = add_key(keys, "tests")
    with served(repository, miniature_model, os.environ | ray_cluster.environment, keys, key) as (_, client):
        yield client


def without_cluster() -> dict[str, str]:
    """The environment of a user who has no cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}


@contextmanager
def served(
    repository: Path, model: Path, environment: Mapping[str, str], keys: Path | None = None, key: str | None = None, *settings: str
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """`python -m serve` with `model` and `settings`, once it is ready, and a client with `key`; interrupted at the end."""
    command = [sys.executable, "-m", "serve", "--config", "configs/miniature.yaml", "--set", LIMIT, "--model", str(model), "--port", "0"]
    for setting in (f"serve.keys={keys}",) * (keys is not None) + settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, cwd=repository, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("ready: "):
            break
    else:
        raise AssertionError("".join(said))
    try:
        with Client(said[-1].split()[1], key) as client:
            yield process, client
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def test_an_uploaded_clip_gets_the_probabilities_of_evaluation(
    client: Client, clip_path: Path, config: RunConfig, miniature_model: Path
) -> None:
    answer = client.classify(clip_path)
    assert math.fsum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.probabilities[answer.label] == max(answer.probabilities.values())

    pool = DecodePool(1, 60.0, 2 << 30)
    clip = asyncio.run(pool.decode_async(str(clip_path), config.video.spec()))
    pool.close()
    engine = HFEngine(config.model.model_copy(update={"path": str(miniature_model)}), config.video.spec())
    by_hf = probabilities(asyncio.run(engine.score(clip, config.task.question_messages(), config.task.labels)))
    assert answer.probabilities == pytest.approx(by_hf, abs=1e-3)


def test_a_rationale_comes_with_its_sections(client: Client, clip_path: Path, config: RunConfig) -> None:
    answer = client.rationale(clip_path)
    assert answer.text and answer.sections == config.task.parse_sections(answer.text)


def test_why_is_told_word_by_word_without_a_second_upload(client: Client, clip_path: Path) -> None:
    answer = client.classify(clip_path)
    start, *pieces, end = client.stream_rationale(video_id=answer.video_id)
    assert isinstance(start, RationaleStart) and isinstance(end, RationaleAnswer)
    texts = [piece.text for piece in pieces if isinstance(piece, TextPiece)]
    assert len(texts) > 10 and "".join(texts) == end.text
    assert end.text == client.rationale(clip_path).text
    assert "decode" not in end.timing_s and end.gates["not_cut_off"] == (end.finish_reason == "stop")
    # The engine had what both prompts begin with, the video above all.
    assert end.num_cached_tokens > 0
    stream = client.stream_rationale(video_id=answer.video_id)
    next(stream)
    stream.close()
    assert client.classify(clip_path).label == answer.label, "one that hung up leaves the service as it was"


def test_where_it_looks_is_told_by_another_process(client: Client, clip_path: Path, config: RunConfig, miniature_model: Path) -> None:
    answer = client.classify(clip_path)
    looks = client.attention(video_id=answer.video_id)
    assert client.task().has_attention and "decode" not in looks.timing_s

    pool = DecodePool(1, 60.0, 2 << 30)
    clip = asyncio.run(pool.decode_async(str(clip_path), config.video.spec()))
    pool.close()
    served = ServedModel(miniature_model, answer.model, config.task, config.video.spec(), {})
    directly = asyncio.run(AttentionModel(served, config.model, config.evaluation.attention.num_layers).look(clip, None))
    assert looks.video_share == pytest.approx(directly.video_share, abs=1e-4)
    assert [heatmap.share for heatmap in looks.heatmaps] == pytest.approx([heatmap.share for heatmap in directly.heatmaps], abs=1e-4)
    assert client.attention(clip_path).heatmaps == looks.heatmaps


def test_without_a_key_only_health_is_told(client: Client, clip_path: Path) -> None:
    url = client.url
    with Client(url, "rbft_wrong") as stranger:
        for ask in (stranger.task, lambda: stranger.classify(clip_path), lambda: stranger.rationale(video_id="x")):
            with pytest.raises(errors.UnauthorizedError):
                ask()
    ready = httpx.get(f"{url}/readyz")
    assert ready.status_code == 200 and ready.headers["x-model-version"]
    assert len(ready.headers.get_list("x-request-id")) == 1


def test_sixteen_uploads_at_once_get_the_answer_of_one(client: Client, clip_path: Path) -> None:
    alone = client.classify(clip_path).probabilities
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(client.classify, [clip_path] * 16))
    assert [answer.probabilities for answer in answers] == [pytest.approx(alone, abs=2e-3)] * 16


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", errors.VideoEmptyError),
        (b"these are words, not pictures\n" * 20, errors.VideoFormatError),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", errors.VideoFormatError),
        (b"x" * 1_000_001, errors.UploadTooLargeError),
    ],
    ids=["empty", "text", "playlist", "too large"],
)
def test_a_bad_upload_is_refused_by_its_kind_and_the_next_good_one_answered(
    client: Client, clip_path: Path, tmp_path: Path, content: bytes, error: type[errors.RBFTError]
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(error):
        client.classify(path)
    assert client.classify(clip_path).label in client.task().labels


@pytest.mark.slow
def test_a_qwen2_vl_answers_too(repository: Path, clip_path: Path, tmp_path: Path) -> None:
    """On a Ray of its own: two services on one cluster would share its one HTTP proxy."""
    model = make_tiny_model(tmp_path / "qwen2-vl", "qwen2_vl")
    with served(repository, model, without_cluster()) as (_, client):
        answer = client.classify(clip_path)
        assert math.fsum(answer.probabilities.values()) == pytest.approx(1)
        assert client.rationale(clip_path).num_tokens > 0


@pytest.mark.slow
def test_rationales_are_written_by_the_model_that_the_configuration_names(
    repository: Path, clip_path: Path, miniature_model: Path, tmp_path: Path
) -> None:
    writer = make_tiny_model(tmp_path / "writer")
    names = [f"serve.rationale_model={writer}", "serve.attention=false"]
    with served(repository, miniature_model, without_cluster(), None, None, *names) as (_, client):
        task = client.task()
        answer = client.classify(clip_path)
        start, *_, end = client.stream_rationale(video_id=answer.video_id)
        metrics = httpx.get(f"{client.url}/metrics").text
    assert isinstance(start, RationaleStart) and isinstance(end, RationaleAnswer)
    assert answer.model == task.model and task.model.fingerprint == artifacts.model_fingerprint(miniature_model)
    assert end.model == start.model == task.rationale_model
    assert end.model.fingerprint == artifacts.model_fingerprint(writer)
    assert end.num_cached_tokens == 0, "the other engine has read the video, not this one"
    assert f'fingerprint="{end.model.fingerprint}"' in metrics and 'route="/v1/classify",status="200"} 1.0' in metrics


@pytest.mark.slow
def test_a_model_that_a_canary_finds_wrong_is_not_served(repository: Path, clip_path: Path) -> None:
    canary = f"serve.canary={{video: {clip_path}, label: none of them}}"
    command = [sys.executable, "-m", "serve", "--config", "configs/miniature.yaml", "--port", "0"]
    command += ["--set", "serve.system=zero-shot", "--set", canary, "--set", "serve.attention=false"]
    done = subprocess.run(command, cwd=repository, env=without_cluster(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1 and "ready:" not in done.stdout
    assert f"the canary {clip_path} is none of them, and the model says" in done.stderr


@pytest.mark.slow
def test_the_command_serves_on_a_ray_of_its_own_until_interrupted_and_leaves_no_process_behind(
    repository: Path, clip_path: Path, miniature_model: Path
) -> None:
    with served(repository, miniature_model, without_cluster()) as (process, client):
        assert client.classify(clip_path).label in client.task().labels
        started = psutil.Process(process.pid).children(recursive=True)
    assert started and process.returncode == 0
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
