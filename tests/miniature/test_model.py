"""The model folder in the repository is whole, small, and what its provenance says."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from miniature.base import MODEL_FOLDER, load_task
from miniature.evaluate import held_out, write_rationales
from miniature.slots import SLOT_NAMES, score
from miniature.tokenizer import corpus

MAX_WEIGHT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def provenance() -> dict:
    return json.loads((MODEL_FOLDER / "provenance.json").read_text())


def test_the_weights_are_small_enough_for_a_repository() -> None:
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES


def test_every_file_is_the_one_that_the_provenance_names(provenance: dict) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MODEL_FOLDER.iterdir() if path.name != "provenance.json"}
    assert found == provenance["files_sha256"]


def test_the_base_knows_its_own_domain(provenance: dict) -> None:
    assert provenance["slots"]["general"]["overall"] >= 0.90


def test_a_frame_of_84_pixels_is_not_scaled() -> None:
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    frames = np.zeros((8, 84, 84, 3), dtype=np.uint8)
    metadata = VideoMetadata(total_num_frames=8, fps=1.0, frames_indices=list(range(8)), duration=8.0)
    text = processor.apply_chat_template(load_task().question_messages(), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[4, 6, 6]]
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 36


def test_the_tokenizer_reads_back_all_that_the_base_was_trained_with() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    for text in [*corpus(load_task()), "Ünïcode ✓ and 漢字, too"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert all(len(tokenizer(label)["input_ids"]) == 1 for label in load_task().labels)


def test_the_model_still_describes_clips_as_well_as_was_recorded(provenance: dict) -> None:
    from transformers import AutoProcessor

    from rbft.models.load import load_model

    model = load_model(MODEL_FOLDER, "float32")
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    plans = held_out("general", 32)
    scores = score(write_rationales(model, processor, load_task(), plans), [plan.slots for plan in plans])
    # 128 slots: three standard errors below the recorded share.
    recorded = provenance["slots"]["general"]["overall"]
    assert scores["overall"] > recorded - 3 * np.sqrt(recorded * (1 - recorded) / (len(plans) * len(SLOT_NAMES))) - 0.01
