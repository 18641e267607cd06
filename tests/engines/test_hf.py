"""The plain Hugging Face engine against a computation from scratch."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch

from rbft.config import ModelConfig
from rbft.engines.base import Sampling
from rbft.engines.hf import HFEngine
from rbft.models.load import load_model
from tests.samples import SPEC, TASK, random_clip
from tests.tiny_models import make_tiny_model

LABELS = ("normal", "not normal", "abnormal", "no")
CLIP = random_clip(6, fps=0.9)
MESSAGES = TASK.question_messages()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2_5_vl")


@pytest.fixture(scope="module")
def engine(folder: Path) -> HFEngine:
    return make_engine(folder)


def make_engine(folder: Path) -> HFEngine:
    return HFEngine(ModelConfig(path=str(folder), dtype="float32"), SPEC, device="cpu")


@torch.inference_mode()
def next_logprobs(folder: Path, engine: HFEngine, prefix: list[int]) -> torch.Tensor:
    """[V] after the prompt and `prefix`, by a forward of its own."""
    adapter = engine.adapter
    batch = adapter.collate([adapter.encode(CLIP, MESSAGES)])
    del batch["labels"]
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([prefix], dtype=torch.long)], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["mm_token_type_ids"] = (batch["input_ids"] == adapter.video_token_id).long() * 2
    return torch.log_softmax(load_model(folder, "float32").eval()(**batch).logits[0, -1].double(), dim=-1)


def test_a_score_is_the_sum_of_the_logprobs_of_the_labels_tokens_and_the_end_token(folder: Path, engine: HFEngine) -> None:
    scores = asyncio.run(engine.score(CLIP, MESSAGES, LABELS))
    for label in ("not normal", "no"):
        tokens = engine.adapter.answer_ids(label)
        assert tokens[-1] == engine.adapter.end_token_id
        expected = sum(float(next_logprobs(folder, engine, tokens[:place])[token]) for place, token in enumerate(tokens))
        assert scores[label] == pytest.approx(expected, abs=1e-4)
    assert list(scores) == list(LABELS)


def test_a_label_scores_the_same_whichever_stand_beside_it(engine: HFEngine) -> None:
    together, alone = (asyncio.run(engine.score(CLIP, MESSAGES, labels)) for labels in (LABELS, LABELS[:1]))
    assert together["normal"] == pytest.approx(alone["normal"], abs=1e-4)


def test_greedy_text_is_the_most_likely_token_again_and_again_until_its_length_is_reached(folder: Path, engine: HFEngine) -> None:
    tokens: list[int] = []
    for _ in range(3):
        tokens.append(int(next_logprobs(folder, engine, tokens).argmax()))
    assert engine.adapter.end_token_id not in tokens
    generated = asyncio.run(engine.generate(CLIP, MESSAGES, Sampling(max_new_tokens=3)))
    assert generated.text == engine.adapter.decode(tokens)
    assert (generated.num_tokens, generated.finish_reason) == (3, "length")
    assert generated.num_prompt_tokens == len(engine.adapter.encode(CLIP, MESSAGES).input_ids_L)


def test_text_ends_at_the_end_token_which_is_counted(folder: Path, engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = int(next_logprobs(folder, engine, []).argmax())
    monkeypatch.setattr(engine.adapter, "end_token_id", first)
    generated = asyncio.run(engine.generate(CLIP, MESSAGES, Sampling(max_new_tokens=3)))
    assert (generated.num_tokens, generated.finish_reason) == (1, "stop")


def test_drawn_text_depends_on_its_seed_only(engine: HFEngine) -> None:
    def draw(seed: int) -> str:
        return asyncio.run(engine.generate(CLIP, MESSAGES, Sampling(8, temperature=5.0, seed=seed))).text

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_models_own_generation_settings_do_not_shape_what_is_drawn(folder: Path, tmp_path: Path, engine: HFEngine) -> None:
    """Qwen's folders come with top_k, top_p and a repetition penalty of their own, which vLLM is not told either."""
    shutil.copytree(folder, tmp_path / "own")
    settings = tmp_path / "own" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"top_k": 1, "top_p": 0.001, "repetition_penalty": 5.0}))
    sampling = Sampling(8, temperature=5.0, seed=3)
    own, plain = (asyncio.run(which.generate(CLIP, MESSAGES, sampling)) for which in (make_engine(tmp_path / "own"), engine))
    assert own == plain
