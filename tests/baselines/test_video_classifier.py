"""Hugging Face's video classifiers: loaded with a new head, run, saved, loaded again, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification

from rbft.baselines.classifier_optimiser import build_optimiser, leave_out_unused
from rbft.baselines.video_classifier import VideoClassifier, load_for_training, load_trained, save_classifier
from rbft.config import VideoClassifierConfig
from rbft.errors import ModelError
from tests.baselines.classifiers import KINDS, NUM_FRAMES, SIZE, Kind, make_tiny_classifier
from tests.samples import TASK, random_clip, write_video

LABELS = TASK.labels


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_tiny_classifier(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A VideoMAE to be spoilt."""
    return Path(shutil.copytree(folders["videomae"], tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def encoded(classifier: VideoClassifier, num_clips: int = 2) -> torch.Tensor:
    clips = [random_clip(classifier.encoder.form.num_frames, 40, 60, seed=seed) for seed in range(num_clips)]
    return torch.stack([classifier.encoder.encode(clip) for clip in clips])


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_becomes_a_logit_a_label(folders: dict[str, Path], kind: Kind) -> None:
    classifier = load_for_training(folders[kind], LABELS, seed=0)
    pixels_BTCHW = encoded(classifier)
    assert pixels_BTCHW.shape == (2, NUM_FRAMES, 3, SIZE, SIZE) and pixels_BTCHW.dtype == torch.float32
    logits_BL = classifier.logits(pixels_BTCHW)
    assert logits_BL.shape == (2, len(LABELS)) and logits_BL.dtype == torch.float32
    assert not torch.equal(logits_BL[0], logits_BL[1])
    assert classifier.model.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_drawn_by_the_seed_and_the_rest_is_the_checkpoints(folders: dict[str, Path], kind: Kind) -> None:
    first, again, other = (load_for_training(folders[kind], ("a", "b", "c"), seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    stored = load_file(folders[kind] / "model.safetensors")
    # As many classes as the checkpoint had, and still its head is not taken: it means others.
    assert not torch.equal(first.classifier.weight, stored["classifier.weight"]) and not first.classifier.bias.any()
    loaded = AutoModelForVideoClassification.from_pretrained(folders[kind], dtype=torch.float32).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in first.state_dict().items() if not name.startswith("classifier."))


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_what_pretraining_leaves_gets_a_head_and_what_belongs_to_it(tmp_path: Path, kind: Kind) -> None:
    folder = make_tiny_classifier(tmp_path / "pretrained", kind, pretrained_only=True)
    first, again = (load_for_training(folder, LABELS, seed=3) for _ in range(2))
    assert torch.equal(first.logits(encoded(first)), again.logits(encoded(again)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_some_clips_lowers_their_loss(folders: dict[str, Path], kind: Kind) -> None:
    classifier = load_for_training(folders[kind], LABELS, seed=0)
    pixels_BTCHW, targets_B = encoded(classifier, 4), torch.tensor([0, 1, 0, 1])
    leave_out_unused(classifier.model, classifier.model.main_input_name, pixels_BTCHW[:1])
    optimiser = build_optimiser(classifier.model, VideoClassifierConfig(name="a", path="a", learning_rate=1e-3))
    classifier.model.eval()  # without dropout, so that both losses are of the same function
    losses = []
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(classifier.logits(pixels_BTCHW), targets_B)
        loss.backward()
        assert all(parameter.grad is not None for parameter in classifier.model.parameters() if parameter.requires_grad)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_saved_model_gives_the_same_logits(folders: dict[str, Path], tmp_path: Path, kind: Kind, fit: Any) -> None:
    classifier = load_for_training(folders[kind], LABELS, seed=5, fit=fit)
    classifier.model.eval()
    save_classifier(classifier, TASK, {"system": "x"}, tmp_path / "final")
    loaded = load_trained(tmp_path / "final")
    loaded.model.eval()
    assert loaded.encoder.form == classifier.encoder.form
    assert torch.equal(loaded.logits(encoded(loaded)), classifier.logits(encoded(classifier)))
    plain = AutoModelForVideoClassification.from_pretrained(tmp_path / "final")  # and plain transformers too
    assert plain.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("kind", ["videomae", "vjepa2", "uniformerv2"])
def test_models_without_weights_for_each_frame_take_another_number_of_frames(folders: dict[str, Path], kind: Kind) -> None:
    classifier = load_for_training(folders[kind], LABELS, seed=0, num_frames=8)
    assert classifier.logits(encoded(classifier)).shape == (2, len(LABELS)) and classifier.encoder.form.num_frames == 8


@pytest.mark.parametrize("kind", ["vivit", "timesformer", "internvideo2"])
def test_weights_for_each_frame_are_never_silently_drawn_anew(folders: dict[str, Path], kind: Kind) -> None:
    with pytest.raises(ModelError, match="is for 4 frames; leave num_frames out"):
        load_for_training(folders[kind], LABELS, seed=0, num_frames=8)


def test_drop_path_is_a_setting_of_models_that_have_it(folders: dict[str, Path]) -> None:
    model = load_for_training(folders["internvideo2"], LABELS, seed=0, drop_path_rate=0.3).model
    assert [layer.drop_path.rate for layer in model.internvideo2.layers] == [0.0, 0.3]
    with pytest.raises(ModelError, match="a videomae has no drop path"):
        load_for_training(folders["videomae"], LABELS, seed=0, drop_path_rate=0.3)


def test_looking_for_unused_weights_leaves_statistics_of_batches_as_they_were(folders: dict[str, Path]) -> None:
    classifier = load_for_training(folders["uniformerv2"], LABELS, seed=0)
    before = {name: value.clone() for name, value in classifier.model.named_buffers()}
    leave_out_unused(classifier.model.train(), "pixel_values", encoded(classifier)[:1])
    assert before and all(torch.equal(value, before[name]) for name, value in classifier.model.named_buffers())
    assert classifier.model.training


def test_a_folder_that_lacks_weights_is_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name)
    save_file({key: value for key, value in weights.items() if key != name}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, e\.g\. videomae\."):
        load_for_training(copied, LABELS, seed=0)


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    change_json(copied / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="has another shape than"):
        load_for_training(copied, LABELS, seed=0)


def test_a_chat_model_is_no_video_classifier(copied: Path) -> None:
    change_json(copied / "config.json", model_type="qwen2_vl")
    with pytest.raises(ModelError, match="give the folder of a video classifier"):
        load_for_training(copied, LABELS, seed=0)


def test_a_processor_of_another_size_is_refused_unless_the_frame_is_stretched(copied: Path) -> None:
    change_json(copied / "preprocessor_config.json", crop_size={"height": 48, "width": 48})
    with pytest.raises(ModelError, match=r"makes frames of 48 x 48, its config\.json wants 32 x 32"):
        load_for_training(copied, LABELS, seed=0)
    assert load_for_training(copied, LABELS, seed=0, fit="stretch").encoder.form.size == SIZE


def test_an_odd_number_of_frames_is_refused(copied: Path) -> None:
    change_json(copied / "config.json", num_frames=5)
    with pytest.raises(ModelError, match="takes 5 frames, and clips have an even number"):
        load_for_training(copied, LABELS, seed=0)


def test_a_folder_without_processor_or_with_pickled_weights_is_refused(copied: Path) -> None:
    (copied / "preprocessor_config.json").rename(copied / "other.json")
    with pytest.raises(ModelError, match="has no processor configuration"):
        load_for_training(copied, LABELS, seed=0)
    (copied / "other.json").rename(copied / "preprocessor_config.json")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        load_for_training(copied, LABELS, seed=0)


def test_a_model_that_was_not_trained_here_cannot_predict(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no task card"):
        load_trained(folders["videomae"])


def test_real_videos_are_decoded_to_what_the_encoder_asks_for(folders: dict[str, Path], tmp_path: Path) -> None:
    from rbft.video.decode import decode

    classifier = load_for_training(folders["vivit"], LABELS, seed=0)
    clip = decode(write_video(tmp_path / "a.mp4", seconds=6), classifier.encoder.video_spec(), start_s=2.0)
    assert clip.num_frames == NUM_FRAMES and clip.timestamps_s == pytest.approx([2, 3, 4, 5], abs=0.51)
    assert classifier.encoder.encode(clip).shape == (NUM_FRAMES, 3, SIZE, SIZE)
