"""The same clip is the same model input on the training, vLLM and plain transformers paths, and the engines agree on it.

For all labels together vLLM reads it once.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbft.config import ModelConfig, RunConfig, load_config
from rbft.engines.base import Answer, Sampling
from rbft.engines.labels import label_tree
from rbft.engines.vllm import engine_arguments
from rbft.errors import EngineError, EngineGoneError
from rbft.models.chat import ChatAdapter
from rbft.records import Clip, VideoSpec
from tests.integration.both_engines import ENGINE, Engines
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(600)

SPEC = VideoSpec(max_frames=16, max_pixels=28 * 28 * 16)
MESSAGES = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Is this video normal or abnormal? Answer with one word."}]}
]
LABELS = ("normal", "abnormal")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def random_clip(seed: int, num_frames: int = 8, height: int = 84, width: int = 112, fps: float = 1.0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Clip(frames, tuple(i / fps for i in range(num_frames)), fps, num_frames / fps, fps, "pyav")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(
    "clip", [random_clip(0), random_clip(1, num_frames=4, fps=2.0), random_clip(2, num_frames=12, height=56, width=140, fps=0.5)]
)
def test_training_transformers_and_vllm_get_the_same_tensors(tiny: Path, clip: Clip) -> None:
    from vllm import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    adapter = ChatAdapter(tiny, SPEC)
    ours = adapter.encode(clip, MESSAGES)

    by_processor = adapter.processor(
        text=[adapter.prompt_text(MESSAGES)],
        videos=[clip.frames_THWC],
        video_metadata=[adapter.video_metadata(clip)],
        do_sample_frames=False,
        return_tensors="pt",
        **adapter.video_kwargs,
    )
    assert by_processor["input_ids"][0].tolist() == ours.input_ids_L.tolist()
    assert by_processor["mm_token_type_ids"][0].tolist() == ours.mm_token_type_ids_L.tolist()
    pixel_values_PD = adapter.pixel_values([ours])
    assert torch.equal(by_processor["pixel_values_videos"], pixel_values_PD)
    assert by_processor["video_grid_thw"][0].tolist() == ours.grid_thw.tolist()

    arguments = engine_arguments(ModelConfig(path=str(tiny), dtype="float32"), ENGINE, adapter)
    renderer = renderer_from_config(AsyncEngineArgs(**arguments).create_engine_config())
    (by_vllm,) = renderer.render_cmpl([adapter.vllm_prompt(clip, MESSAGES)])
    (item,) = by_vllm["mm_kwargs"]["video"]
    assert list(by_vllm["prompt_token_ids"]) == ours.input_ids_L.tolist()
    assert item["video_grid_thw"].data.tolist() == ours.grid_thw.tolist()
    # vLLM normalises on the device: its processor hands over raw pixels in patch order, channels outermost.
    raw_PCX = item["pixel_values_videos"].data.float().reshape(len(pixel_values_PD), 3, -1)
    video_processor = adapter.processor.video_processor
    mean, std = (torch.tensor(values).reshape(1, 3, 1) for values in (video_processor.image_mean, video_processor.image_std))
    normalised_PD = ((raw_PCX / 255 - mean) / std).reshape(pixel_values_PD.shape)
    torch.testing.assert_close(normalised_PD, pixel_values_PD, atol=1e-5, rtol=0)
    if "second_per_grid_ts" in by_processor:
        assert by_processor["second_per_grid_ts"].tolist() == [ours.second_per_grid_ts] == [2 / clip.fps]
        assert item["second_per_grid_ts"].data.tolist() == pytest.approx(2 / clip.fps)


@pytest.fixture(scope="module")
def miniature(repository: Path, miniature_model: Path) -> Iterator[tuple[Engines, RunConfig]]:
    config = load_config(repository / "configs/miniature.yaml")
    engines = Engines(config.model, config.engine, config.video.spec())
    yield engines, config
    engines.close()


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = make_tiny_model(tmp_path_factory.mktemp("qwen2-vl"), "qwen2_vl")
    engines = Engines(ModelConfig(path=str(folder), dtype="float32"), ENGINE, SPEC)
    yield engines
    engines.close()


def test_label_likelihoods_of_vllm_and_transformers_agree_on_the_miniature(miniature: tuple[Engines, RunConfig]) -> None:
    engines, config = miniature
    for seed in range(6):
        clip = random_clip(seed, height=84, width=84)
        by_vllm, by_hf = engines.both("score", clip, config.task.question_messages(), config.task.labels)
        assert by_vllm == pytest.approx(by_hf, abs=2e-3)


def test_answers_of_vllm_and_transformers_agree_on_the_miniature(miniature: tuple[Engines, RunConfig]) -> None:
    engines, config = miniature
    # With labels the model would never say, transformers must generate, as it cannot read the text off the labels' scores.
    for labels in (config.task.labels, ("dog", "car")):
        clip = random_clip(len(labels[0]), height=84, width=84)
        by_vllm, by_hf = engines.both("answer", clip, config.task.question_messages(), labels, 16)
        assert isinstance(by_vllm, Answer) and isinstance(by_hf, Answer)
        assert by_vllm.logprobs == pytest.approx(by_hf.logprobs, abs=2e-3)
        assert by_vllm.generated == by_hf.generated


def test_greedy_rationales_of_vllm_and_transformers_are_the_same_on_the_miniature(miniature: tuple[Engines, RunConfig]) -> None:
    engines, config = miniature
    for seed in range(3):
        clip = random_clip(seed, height=84, width=84)
        by_vllm, by_hf = engines.both("generate", clip, config.task.rationale_messages(), Sampling(60))
        assert by_vllm == by_hf


def test_label_likelihoods_of_vllm_and_transformers_agree_on_qwen2_vl(qwen2_vl: Engines) -> None:
    for seed in range(3):
        by_vllm, by_hf = qwen2_vl.both("score", random_clip(seed), MESSAGES, LABELS)
        assert by_vllm == pytest.approx(by_hf, abs=2e-3)


def test_many_labels_are_read_too(miniature: tuple[Engines, RunConfig]) -> None:
    engines, config = miniature
    labels = [
        f"{colour} {subject}" for colour in ("red", "blue", "green", "white") for subject in ("dog", "car", "bird", "robot", "person")
    ]
    labels += LETTERS
    assert len({token for label in labels for token in engines.vllm.adapter.answer_ids(label)}) > 20, "more than vLLM gives unasked"
    by_vllm, by_hf = engines.both("score", random_clip(1, height=84, width=84), config.task.question_messages(), labels)
    assert by_vllm == pytest.approx(by_hf, abs=2e-3)


def test_more_labels_than_one_request_may_read_are_read_too(miniature: tuple[Engines, RunConfig]) -> None:
    engines, config = miniature
    tokenizer = engines.vllm.adapter.tokenizer
    words = (tokenizer.decode([token]).strip() for token in range(len(tokenizer)))
    by_first_token = {engines.vllm.adapter.answer_ids(word)[0]: word for word in words if word.isalpha()}
    labels = list(by_first_token.values())
    assert len(labels) > 128
    by_vllm, by_hf = engines.both("score", random_clip(1, height=84, width=84), config.task.question_messages(), labels)
    assert by_vllm == pytest.approx(by_hf, abs=2e-3)


def test_a_prompt_longer_than_the_context_fails_alone(miniature: tuple[Engines, RunConfig]) -> None:
    """It is an error row then, and not the end of a job."""
    engines, config = miniature
    clip, too_long = random_clip(1, height=84, width=84), config.task.question_messages("dog " * config.engine.max_model_len)
    with pytest.raises(EngineError, match="the engine refused the request") as refused:
        engines.by_vllm("score", clip, too_long, config.task.labels)
    assert not isinstance(refused.value, EngineGoneError)
    with pytest.raises(EngineError, match="the engine refused the request"):
        engines.by_vllm("generate", clip, too_long, Sampling(8))
    assert engines.by_vllm("score", clip, config.task.question_messages(), config.task.labels)


SHARED_LABELS = ("normal", "normal dog", "abnormal")
"""The first two begin alike."""


@pytest.mark.parametrize("method", ["score", "answer"])
def test_labels_cost_one_prefill_of_the_video(method: str, miniature: tuple[Engines, RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the requests compute beside the first is the last, partial block of the prefix cache and the label's own tokens, and the frames
    go to the engine once."""
    engines, config = miniature
    requests: list[tuple[Any, Any]] = []
    generate = engines.vllm._llm.generate

    async def watched(prompt: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for output in generate(prompt, *arguments, **options):
            yield output
        requests.append((prompt, output))

    monkeypatch.setattr(engines.vllm._llm, "generate", watched)
    clip = random_clip(90 + len(method), num_frames=32, height=84, width=84)
    arguments = (16,) if method == "answer" else ()
    by_vllm, by_hf = engines.both(method, clip, config.task.question_messages(), SHARED_LABELS, *arguments)
    scores = [each.logprobs if isinstance(each, Answer) else each for each in (by_vllm, by_hf)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)

    tree = label_tree({label: engines.vllm.adapter.answer_ids(label) for label in SHARED_LABELS})
    (first_prompt, first), *others = requests
    num_tokens, block = len(first.prompt_token_ids), config.engine.block_size
    assert block is not None and num_tokens > 4 * block
    assert first.num_cached_tokens == 0 and first_prompt["mm_kwargs"]["video"][0] is not None
    assert 1 <= len(others) < len(tree), "nodes on the way of the first request need no other"
    for prompt, output in others:
        assert output.num_cached_tokens >= num_tokens // block * block - block * (num_tokens % block == 0)
        assert prompt["mm_kwargs"]["video"] == [None], "its name is enough"
