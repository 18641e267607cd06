"""The engine that asks a server, against vLLM's own server with the miniature's model on it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbft import rows
from rbft.config import OpenAIServerConfig, RunConfig, load_config
from rbft.data.locations import resolve_uri
from rbft.data.manifest import read_manifest
from rbft.engines.base import Engine, Generated, Sampling
from rbft.engines.hf import HFEngine
from rbft.engines.openai import OpenAIEngine
from rbft.engines.openai_request import JPEG_QUALITY
from rbft.engines.vllm import engine_arguments
from rbft.errors import ConfigError, ModelServerRefusedError
from rbft.evaluation.predictions import predictions_from_table
from rbft.models.chat import ChatAdapter
from rbft.records import Clip, Prediction, prediction_schema, rationale_schema
from rbft.video.decode import decode
from tests.integration.conftest import NUM_TEST, NUM_TRAIN, Jobs, end_process_tree

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def config(repository: Path) -> RunConfig:
    return load_config(repository / "configs/miniature.yaml")


@pytest.fixture(scope="module")
def server(config: RunConfig, short_tmp: Path) -> Iterator[OpenAIServerConfig]:
    """`vllm serve` with the arguments of our own engine, behind a key; what it takes to ask it."""
    adapter = ChatAdapter(config.model.path, config.video.spec())
    arguments = engine_arguments(config.model, config.engine, adapter)
    arguments |= {"served_model_name": "miniature", "limit_mm_per_prompt": {"image": 8, "video": 1}, "host": "127.0.0.1"}
    arguments["trust_request_mm_kwargs"] = True
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        arguments["port"] = port = listener.getsockname()[1]
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={_plain(value)}") for name, value in arguments.items()]
    environment = {
        "VLLM_API_KEY": "sesame",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    log = short_tmp / "openai-server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, f"vLLM's server did not start:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TEACHER_KEY", "sesame")
            yield OpenAIServerConfig(url=f"http://127.0.0.1:{port}/v1", model="miniature", api_key_env="TEACHER_KEY", frames="video")
    finally:
        end_process_tree(process.pid)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def clips(world: Path, config: RunConfig) -> list[Clip]:
    """Drawn clips of the small world."""
    return [decode(resolve_uri(example.uri, world.parent), config.video.spec()) for example in read_manifest(world)[:48]]


def rationales(engine: Engine, clips: Sequence[Clip], config: RunConfig) -> list[Generated]:
    """Greedy ones, asked for at once."""
    messages, sampling = config.task.rationale_messages(), Sampling(config.generation.max_new_tokens)

    async def ask() -> list[Generated]:
        return await asyncio.gather(*(engine.generate(clip, messages, sampling) for clip in clips))

    try:
        return asyncio.run(ask())
    finally:
        engine.close()


def as_jpegs(clip: Clip) -> Clip:
    """The clip as it is after a JPEG's compression."""
    frames = []
    for frame_HWC in clip.frames_THWC:
        buffer = io.BytesIO()
        Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        frames.append(np.asarray(Image.open(buffer)))
    return replace(clip, frames_THWC=np.stack(frames))


def test_a_video_over_the_server_is_what_the_model_sees_here(server: OpenAIServerConfig, clips: list[Clip], config: RunConfig) -> None:
    # Rates that are not the server's default change most texts if they do not arrive; it would take 32 of the 40 frames of the last.
    clips = [replace(clip, fps=0.25) if number % 2 else clip for number, clip in enumerate(clips)]
    clips.append(replace(clips[0], frames_THWC=np.tile(clips[0].frames_THWC, (5, 1, 1, 1)), timestamps_s=tuple(map(float, range(40)))))
    here = HFEngine(config.model, config.video.spec())
    expected = rationales(here, [as_jpegs(clip) for clip in clips], config)
    # Text, both token counts (so the chat template is the same too) and the reason of the end.
    assert rationales(OpenAIEngine(server), clips, config) == expected


def test_compression_changes_few_texts(server: OpenAIServerConfig, clips: list[Clip], config: RunConfig) -> None:
    uncompressed = rationales(HFEngine(config.model, config.video.spec()), clips, config)
    by_server = rationales(OpenAIEngine(server), clips, config)
    same = [there.text == here.text for there, here in zip(by_server, uncompressed, strict=True)]
    assert sum(same) >= 0.85 * len(same)  # 68 of 72 when this was written


def test_frames_as_images_reach_the_model(server: OpenAIServerConfig, clips: list[Clip], config: RunConfig) -> None:
    clip = clips[0]
    (by_server,) = rationales(OpenAIEngine(server.model_copy(update={"frames": "images"})), [clip], config)

    adapter = ChatAdapter(config.model.path, config.video.spec())
    frames = [part for second in range(8) for part in ({"type": "text", "text": f"{second}.0 s"}, {"type": "image"})]
    content = frames + config.task.rationale_messages()[0]["content"][1:]
    text = adapter.prompt_text([{"role": "user", "content": content}])
    size = {"size": adapter.video_kwargs["size"], "do_resize": False}
    here = adapter.processor(text=[text], images=list(clip.frames_THWC), return_tensors="pt", **size)
    assert by_server.num_prompt_tokens == here["input_ids"].shape[1]


def test_what_the_server_refuses_is_said(server: OpenAIServerConfig, clips: list[Clip], config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"HTTP 401: .* check the key: api_key_env names none"):
        OpenAIEngine(server.model_copy(update={"api_key_env": None}))
    with pytest.raises(ConfigError, match=r"HTTP 404: .*`nobody` does not exist.*check the model's name"):
        OpenAIEngine(server.model_copy(update={"model": "nobody"}))

    async def ask() -> None:
        engine = OpenAIEngine(server)
        await engine.check_health()
        with pytest.raises(ModelServerRefusedError, match="max_tokens"):
            await engine.generate(clips[0], config.task.rationale_messages(), Sampling(10_000))
        engine.close()

    asyncio.run(ask())


def test_a_teacher_behind_a_server_writes_the_rationales_of_a_job(server: OpenAIServerConfig, jobs: Jobs) -> None:
    """On a cluster without a GPU to spare: the actors only decode and ask."""
    asked = Jobs(jobs.repository, jobs.output_dir, jobs.manifest, jobs.environment | {"RAY_ADDRESS": "", "TEACHER_KEY": "sesame"})
    settings = json.dumps(server.model_dump(include={"url", "model", "api_key_env", "frames"}))
    output = asked.run("generate", "taught", f"teacher.server={settings}")
    assert f"starting to ask miniature at {server.url}" in output
    (folder,) = (jobs.run_dir("taught") / "rationales").iterdir()
    table = rows.read_finished(str(folder), "rationales", rationale_schema()).to_pylist()
    assert len(table) == NUM_TRAIN and all(row["error_code"] is None and row["num_tokens"] > 4 for row in table)
    assert {json.loads(row["provenance"])["model"] for row in table} == {"miniature"}
    assert "sesame" not in (jobs.run_dir("taught") / "config.yaml").read_text() + (jobs.run_dir("taught") / "run.json").read_text()


def test_a_server_that_refuses_the_key_ends_the_job_with_a_clear_word(server: OpenAIServerConfig, jobs: Jobs) -> None:
    asked = Jobs(jobs.repository, jobs.output_dir, jobs.manifest, jobs.environment | {"RAY_ADDRESS": "", "TEACHER_KEY": "wrong"})
    settings = json.dumps(server.model_dump(include={"url", "model", "api_key_env", "frames"}))
    output = asked.run("generate", "locked-out", f"teacher.server={settings}", expect=2)
    assert "check the key" in output and server.url in output and "Traceback" not in output


def test_an_api_model_is_a_row_of_the_evaluation_and_paid_once(server: OpenAIServerConfig, jobs: Jobs) -> None:
    """The same model asked over HTTP and run here, so that one answers what the other does, as far as JPEGs let it."""
    model = server.model_dump(include={"url", "model", "api_key_env", "frames"}) | {"name": "over-http", "top_logprobs": 20}
    model |= {"price_per_million_input_tokens": 2.0, "price_per_million_output_tokens": 8.0}
    setting = f"evaluation.api_models={json.dumps([model])}"
    asked = Jobs(jobs.repository, jobs.output_dir, jobs.manifest, jobs.environment | {"RAY_ADDRESS": "", "TEACHER_KEY": "sesame"})
    asked.run("evaluate", "by-api", setting, 'evaluation.systems=["zero-shot"]')

    def predictions(run: str, system: str) -> dict[str, Prediction]:
        (folder,) = (jobs.run_dir(run) / "evaluation" / system).iterdir()
        table = rows.read_finished(str(folder), "predictions", prediction_schema())
        return {row.id: row for row in predictions_from_table(table, str(folder))}

    there, here = predictions("by-api", "over-http"), predictions("by-api", "zero-shot")
    assert len(there) == NUM_TEST and there.keys() == here.keys() and all(row.error_code is None for row in there.values())
    assert sum(there[id_].generated == here[id_].generated for id_ in here) >= 0.85 * NUM_TEST
    told = [id_ for id_ in here if there[id_].probabilities]
    assert len(told) >= 0.85 * NUM_TEST
    apart = [abs(there[id_].probabilities[label] - share) for id_ in told for label, share in here[id_].probabilities.items()]
    assert np.median(apart) < 0.02
    (usage,) = (json.loads(path.read_text()) for path in (jobs.run_dir("by-api") / "evaluation" / "over-http").glob("*/usage.json"))
    assert usage["num_videos"] == NUM_TEST and usage["num_input_tokens"] > 40 * NUM_TEST and usage["num_output_tokens"] >= 2 * NUM_TEST
    assert usage["cost_usd"] == pytest.approx((2 * usage["num_input_tokens"] + 8 * usage["num_output_tokens"]) / 1e6, abs=1e-6)

    # Another run, without systems of its own, with a key that the server would refuse: it has nothing to ask.
    locked_out = replace(asked, environment=asked.environment | {"TEACHER_KEY": "wrong"})
    locked_out.run("pipeline", "by-api-again", setting, "evaluation.systems=[]")
    assert predictions("by-api-again", "over-http") == there
    summary = json.loads((jobs.run_dir("by-api-again") / "summary.json").read_text())
    assert set(summary["systems"]) == {"over-http"}
    report = (jobs.run_dir("by-api-again") / "report.html").read_text()
    assert "over-http" in report and "API models" in report and "sesame" not in report
    for path in jobs.output_dir.rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes(), path
