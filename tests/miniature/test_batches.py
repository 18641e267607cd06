"""The base's training shortcuts give what the real processor and the real tower give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from miniature import batches
from miniature.base import BaseConfig, begin_part, caption_loss, label_tokens, load_task, new_model, rate_at
from miniature.batches import Conversation, Conversations, grids, patches
from miniature.draw import render
from miniature.world import caption, generic_abnormal_share, generic_label, sample_general
from rbft.models.attention import reference_attention, use_segments
from rbft.models.patches import PatchLayout

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    from rbft.task import Task


@pytest.fixture(scope="module")
def untrained() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    return new_model(load_task(), BaseConfig())


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task()


def video_patches(processor: Qwen2_5_VLProcessor, numbers: list[int]) -> torch.Tensor:
    frames = np.stack([render(sample_general(0, "test", number))[0] for number in numbers])
    return patches(frames, PatchLayout.of(processor.video_processor))


def test_patches_and_token_ids_equal_the_processors(untrained, task: Task) -> None:
    from transformers.video_utils import VideoMetadata

    _, processor = untrained
    frames, _ = render(sample_general(0, "test", 0))
    text = processor.apply_chat_template(task.rationale_messages(), add_generation_prompt=True, tokenize=False)
    metadata = VideoMetadata(total_num_frames=8, fps=1.0, frames_indices=list(range(8)), duration=8.0)
    reference = processor(text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    assert torch.equal(video_patches(processor, [0]), reference["pixel_values_videos"])
    grid_thw, seconds = grids(1)
    assert torch.equal(grid_thw, reference["video_grid_thw"])
    assert seconds.tolist() == list(reference["second_per_grid_ts"])
    conversations = Conversations(task, processor)
    assert conversations.prompt_ids(task.rationale_messages()) == reference["input_ids"][0].tolist()
    batch = conversations.collate([Conversation(task.rationale_messages(), "normal")])
    length = reference["mm_token_type_ids"].shape[1]
    assert torch.equal(batch.mm_token_type_ids[:, :length], reference["mm_token_type_ids"].int())


def test_the_mask_covers_the_answer_and_its_end_token_and_nothing_else(untrained, task: Task) -> None:
    _, processor = untrained
    answers = [caption(sample_general(0, "test", 1).slots, np.random.default_rng(0)), "abnormal"]
    asked = [Conversation(task.rationale_messages(), answers[0]), Conversation(task.question_messages(), answers[1], 0.8)]
    batch = Conversations(task, processor).collate(asked)
    for row, answer in enumerate(answers):
        assert processor.tokenizer.decode(batch.input_ids[row][batch.supervised[row]]) == f"{answer}<|im_end|>"
    assert not (batch.supervised & (batch.attention_mask == 0)).any()


def test_half_of_the_prompts_ask_for_the_label_with_the_general_domains_share_of_abnormal(untrained, task: Task) -> None:
    _, processor = untrained
    conversations, rng = Conversations(task, processor), np.random.default_rng(0)
    slots = [sample_general(0, "test", number).slots for number in range(1000)]
    drawn = [(conversations.draw(some, rng), some) for some in slots]
    asked = [(each, some) for each, some in drawn if each.answer in task.labels]
    assert len(asked) / len(slots) == pytest.approx(batches.QUESTION_SHARE, abs=0.04)
    assert all((each.answer, each.abnormal_share) == (generic_label(some), generic_abnormal_share(some)) for each, some in asked)
    assert all(math.isnan(each.abnormal_share) for each, _ in drawn if each.answer not in task.labels)


def test_attending_to_all_pairs_of_frames_at_once_gives_the_same_numbers(untrained) -> None:
    model, processor = untrained
    pixels, (grid_thw, _) = video_patches(processor, [0, 1]), grids(2)
    use_segments(model, packed=False)
    with torch.no_grad():
        at_once = model.model.visual(pixels, grid_thw=grid_thw).pooler_output
        with reference_attention(model):
            one_by_one = model.model.visual(pixels, grid_thw=grid_thw).pooler_output
    assert torch.allclose(one_by_one, at_once, atol=1e-5)


def test_the_loss_of_a_row_does_not_depend_on_the_padding_beside_it(untrained, task: Task) -> None:
    model, processor = untrained
    conversations = Conversations(task, processor)
    short = Conversation(task.question_messages(), "normal", 0.4)
    long = Conversation(task.rationale_messages(), caption(sample_general(0, "test", 1).slots, np.random.default_rng(0)))
    tokens = label_tokens(processor, task.labels)
    pixels = video_patches(processor, [0, 1])
    with torch.no_grad():
        both = conversations.collate([short, long])
        both.supervised[1] = False
        padded = caption_loss(model, pixels, both, tokens)
        alone = caption_loss(model, pixels[: len(pixels) // 2], conversations.collate([short]), tokens)
    assert padded.item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_label_is_taught_as_the_share_of_either(untrained, task: Task) -> None:
    model, processor = untrained
    conversations, pixels = Conversations(task, processor), video_patches(processor, [0])
    tokens = label_tokens(processor, task.labels)

    def loss(answer: str, share: float) -> float:
        with torch.no_grad():
            return caption_loss(
                model, pixels, conversations.collate([Conversation(task.question_messages(), answer, share)]), tokens
            ).item()

    # The mean over two tokens, the label and its end; the end's differs with the label before it.
    ends = {answer: loss(answer, 0.4) for answer in task.labels}
    sure = {answer: (loss(answer, 0.0), loss(answer, 1.0)) for answer in task.labels}
    for answer, (as_normal, as_abnormal) in sure.items():
        assert ends[answer] == pytest.approx(0.6 * as_normal + 0.4 * as_abnormal, abs=1e-5)
        assert as_normal != pytest.approx(as_abnormal, abs=1e-3)


def test_the_rate_warms_up_to_its_peak_and_falls_to_a_fiftieth() -> None:
    rates = [rate_at(step, 100, 10, 1e-3) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(2e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_run_that_went_on_with_other_settings_says_so(tmp_path: Path) -> None:
    begin_part(tmp_path, BaseConfig(caption_steps=10))
    torch.save({"step": 7}, tmp_path / "captions-state.pt")
    parts = begin_part(tmp_path, BaseConfig(caption_steps=20))
    assert [(part["first_caption_step"], part["config"]["caption_steps"]) for part in parts] == [(0, 10), (7, 20)]
    assert all("miniature/draw.py" in part["sources_sha256"] for part in parts)
