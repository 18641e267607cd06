"""One path from a clip to model input: the same numbers as the plain Hugging Face processor and as vLLM, for both kinds of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from rbft.errors import ModelError
from rbft.models import chat
from rbft.models.chat import IGNORE_INDEX, ChatAdapter
from rbft.models.load import load_model
from rbft.records import Clip
from tests.models.vllm_inputs import VllmInputs, VllmProcessor
from tests.samples import SPEC, TASK, random_clip

MESSAGES = TASK.question_messages("Camera at the gate.")

CLIPS = {
    "1 FPS": random_clip(8, 56, 84),
    "short, sampled densely": random_clip(4, 84, 56, fps=4 / 1.7, seed=1),
    "long, sampled thinly": random_clip(64, 28, 28, fps=0.9, seed=2),
    "wide": random_clip(2, 56, 224, seed=3),
}


@pytest.fixture(scope="module")
def adapter(model_folder: Path) -> ChatAdapter:
    return ChatAdapter(model_folder, SPEC)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def vllm_processor(request: pytest.FixtureRequest, model_folder: Path, adapter: ChatAdapter) -> VllmProcessor:
    return VllmProcessor(model_folder, adapter, request.param)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_model(model_folder, "float32")


@pytest.fixture(params=CLIPS)
def clip(request: pytest.FixtureRequest) -> Clip:
    return CLIPS[request.param]


def positions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[3, B, L] as training and the Hugging Face engine compute them."""
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask", "second_per_grid_ts")
    return model.model.get_rope_index(**{name: batch[name] for name in names if name in batch})[0]


def test_the_input_is_that_of_the_processor_called_plainly(model_folder: Path, adapter: ChatAdapter, clip: Clip) -> None:
    processor = AutoProcessor.from_pretrained(model_folder)
    expected = processor(
        text=[processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)],
        videos=[torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2)],
        video_metadata=[{"fps": clip.fps, "total_num_frames": clip.num_frames, "frames_indices": list(range(clip.num_frames))}],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    sample = adapter.encode(clip, MESSAGES)
    assert sample.input_ids_L.tolist() == expected["input_ids"][0].tolist()
    assert sample.mm_token_type_ids_L.tolist() == expected["mm_token_type_ids"][0].tolist()
    assert sample.grid_thw.tolist() == expected["video_grid_thw"][0].tolist()
    torch.testing.assert_close(adapter.pixel_values([sample]), expected["pixel_values_videos"], rtol=0, atol=0)
    seconds = expected.get("second_per_grid_ts", [2 / clip.fps])[0]
    assert sample.second_per_grid_ts == pytest.approx(float(seconds), rel=2**-8)


def test_the_input_is_what_vllm_makes_of_it(adapter: ChatAdapter, model: Any, vllm_processor: VllmProcessor, clip: Clip) -> None:
    sample, theirs = adapter.encode(clip, MESSAGES), vllm_processor(clip, MESSAGES)
    assert sample.input_ids_L.tolist() == theirs.prompt_token_ids
    assert sample.grid_thw.tolist() == theirs.grid_thw.tolist()
    torch.testing.assert_close(adapter.pixel_values([sample]), normalised(adapter, theirs), rtol=0, atol=1e-5)
    assert theirs.second_per_grid_ts in (None, sample.second_per_grid_ts)
    positions_3BL = positions(model, adapter.collate([sample]))
    assert torch.equal(positions_3BL[:, 0], theirs.positions_3L)
    assert int(positions_3BL.max()) + 1 - len(sample.input_ids_L) == theirs.position_delta


def test_an_answer_prefix_is_the_training_answers_beginning(adapter: ChatAdapter, vllm_processor: VllmProcessor) -> None:
    answer = adapter.answer_ids("abnormal")
    sample = adapter.encode(CLIPS["1 FPS"], MESSAGES, "abnormal")
    theirs = vllm_processor(CLIPS["1 FPS"], MESSAGES, tuple(answer[:-1]))
    assert sample.input_ids_L.tolist() == [*theirs.prompt_token_ids, adapter.end_token_id]


def normalised(adapter: ChatAdapter, inputs: VllmInputs) -> torch.Tensor:
    """vLLM's pixels, normalised here: the engine does it on the device, with the same mean and deviation."""
    processor = adapter.processor.video_processor
    pixels_PCE = inputs.pixel_values_PD.float().unflatten(1, (3, -1))
    mean_C, deviation_C = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ((pixels_PCE * processor.rescale_factor - mean_C[:, None]) / deviation_C[:, None]).flatten(1)


@pytest.mark.parametrize(("fps", "seconds"), [(1.0, 2.0), (0.5, 4.0), (2.0, 1.0), (4 / 3, 1.5)])
def test_second_per_grid_ts_is_two_frames_at_the_true_rate(adapter: ChatAdapter, fps: float, seconds: float) -> None:
    assert adapter.encode(random_clip(fps=fps), MESSAGES).second_per_grid_ts == seconds


def test_prompt_and_video_are_masked_and_the_answer_and_its_end_supervised(adapter: ChatAdapter, clip: Clip) -> None:
    prompt, sample = adapter.encode(clip, MESSAGES), adapter.encode(clip, MESSAGES, "abnormal")
    length = len(prompt.input_ids_L)
    answer = [*adapter.tokenizer("abnormal", add_special_tokens=False)["input_ids"], adapter.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert sample.input_ids_L.tolist() == [*prompt.input_ids_L.tolist(), *answer]
    assert sample.labels_L.tolist() == [IGNORE_INDEX] * length + answer
    assert prompt.num_supervised_tokens == 0
    assert sample.num_supervised_tokens == len(answer)
    text = adapter.tokenizer.decode([token for token in sample.input_ids_L.tolist() if token != adapter.video_token_id])
    assert text.endswith(f"{TASK.question}<|im_end|>\n<|im_start|>assistant\nabnormal<|im_end|>")


def test_a_batch_is_padded_on_the_right_and_padding_is_not_supervised(adapter: ChatAdapter, model: Any) -> None:
    clips = (CLIPS["1 FPS"], CLIPS["wide"])
    samples = [adapter.encode(clip, MESSAGES, answer) for clip, answer in zip(clips, ("normal", "abnormal"), strict=True)]
    batch = adapter.collate(samples)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids_L)
        assert batch["input_ids"][row, :length].tolist() == sample.input_ids_L.tolist()
        assert batch["labels"][row].tolist() == [*sample.labels_L.tolist(), *[IGNORE_INDEX] * (batch["labels"].shape[1] - length)]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert not batch["mm_token_type_ids"][row, length:].any()
        alone = adapter.collate([sample])
        assert torch.equal(positions(model, batch)[:, row, :length], positions(model, alone)[:, 0])
    assert batch["video_grid_thw"].tolist() == [sample.grid_thw.tolist() for sample in samples]


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}: no processor can be loaded from it"):
        ChatAdapter(tmp_path, SPEC)


def test_what_was_tokenised_before_is_the_same_and_belongs_to_who_asks(adapter: ChatAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_MAX_TOKENISED", 3)
    first = adapter.answer_ids("dog")
    first.append(0)
    for text in ("a cat", "dog", "a bird", "dog"):
        assert adapter.answer_ids(text)[:-1] == adapter.tokenizer(text, add_special_tokens=False)["input_ids"]
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        assert adapter.prompt_ids(messages) == adapter.tokenizer(adapter.prompt_text(messages), add_special_tokens=False)["input_ids"]
