"""Official checkpoints to model folders: what is told from weights, what is interpolated, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor

from rbft.cli import main
from rbft.errors import ModelError
from rbft.models.video import register_video_models
from rbft.models.video.convert import convert_checkpoint, convert_weights
from rbft.models.video.official_configs import Geometry
from tests.models.video.recipe import draw_clips, draw_weights
from tests.models.video.test_official import FIXTURES, build, read

ABOUT = {path.stem: read(path)[0] for path in FIXTURES}


def official(name: str, **changes: list[int]) -> dict[str, torch.Tensor]:
    return draw_weights(7, ABOUT[name]["shapes"] | changes)


def geometry(name: str, **settings: Any) -> Geometry:
    about = ABOUT[name]
    of_model: dict[str, Any] = {"trained_frames": about["num_frames"], "num_heads": about["num_heads"]}
    return Geometry(**of_model | {"num_pooling_heads": about.get("num_pooling_heads", 16)} | settings)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: under `model`, all names with a prefix."""
    path = tmp_path_factory.mktemp("official") / "uniformerv2.pyth"
    torch.save({"model": {f"backbone.{name}": value for name, value in official("uniformerv2-f5").items()}}, path)
    return path


def test_a_published_file_becomes_a_folder_that_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "m"), "--trained-frames", "5", "--heads", "2"]) == 0
    register_video_models()
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "m").eval()
    reference, _ = build(ABOUT["uniformerv2-f5"])
    clips = draw_clips(7, 2, 5, 32)
    assert torch.equal(model(clips).logits, reference.eval()(clips).logits)
    assert AutoConfig.from_pretrained(tmp_path / "m").num_frames == 5
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "m")
    assert processor.crop_size["height"] == 32 and list(processor.image_mean) == [0.45] * 3
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForVideoClassification.from_pretrained(tmp_path / "again").eval()(clips).logits, model(clips).logits)


def test_safetensors_are_taken_too(tmp_path: Path) -> None:
    save_file(official("internvideo2-f5"), tmp_path / "a.safetensors")
    told = convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "m", geometry("internvideo2-f5"))
    assert told.startswith("internvideo2: ") and "5 frames of 28 x 28" in told


@pytest.mark.parametrize("name", sorted(ABOUT))
def test_what_the_model_is_is_told_from_its_weights(name: str) -> None:
    theirs = ABOUT[name]["official"]
    config, _ = convert_weights(official(name), geometry(name), name)
    assert config.num_labels == 3 and config.num_frames == ABOUT[name]["num_frames"] and config.image_size == ABOUT[name]["size"]
    if config.model_type == "uniformerv2":
        assert (config.has_local_blocks, config.halves_time) == (not theirs["no_lmhra"], theirs["temporal_downsample"])
        assert config.frozen == theirs.get("frozen", False) and len(config.global_layers) == len(theirs["return_list"])
        assert config.has_second_local_block == theirs.get("double_lmhra", True)
    else:
        methods = {"cls_avg1": "cls_mean", "cls_avgN": "cls_frames", "cls_avg1_proj": "cls_mean_attention"}
        methods |= {"cls_avgN_proj": "cls_frames_attention"}
        assert config.pooling == methods.get(theirs.get("merge_method", ""), "attention")
        norms = {"LN": "layer", "BN": "batch", "kaiming_BN": "batch_plain"}
        assert config.pooling == "attention" or config.pooling_norm == norms[theirs["merge_norm"]]
        assert config.separate_positions == theirs.get("sep_pos_embed", False) and config.tubelet_size == theirs.get("tubelet_size", 1)


def test_missing_and_unexpected_keys_are_named() -> None:
    weights = official("uniformerv2-f5")
    weights["transformer.stranger"] = weights.pop("transformer.dec.0.ln_3.bias")
    with pytest.raises(ModelError, match=r"x: lacks transformer\.dec\.0\.ln_3\.bias and has unexpected transformer\.stranger; give"):
        convert_weights(weights, geometry("uniformerv2-f5"), "x")
    weights = official("internvideo2-f5")
    del weights["blocks.1.attn.k_norm.weight"], weights["head.bias"]
    with pytest.raises(ModelError, match=r"lacks blocks\.1\.attn\.k_norm\.weight, head\.bias"):
        convert_weights(weights, geometry("internvideo2-f5"), "x")


def test_a_weight_of_another_shape_is_named() -> None:
    weights = official("internvideo2-f5", **{"blocks.2.mlp.fc2.weight": [16, 64]})
    with pytest.raises(ModelError, match=r"x: blocks\.2\.mlp\.fc2\.weight is \[16, 64\], wanted \[32, 128\]"):
        convert_weights(weights, geometry("internvideo2-f5"), "x")


def test_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="is of neither UniFormerV2 nor InternVideo2"):
        convert_weights({"encoder.layer.0.weight": torch.zeros(2)}, Geometry(), "x")


def test_what_pretraining_leaves_gets_its_head_in_a_run_and_its_decoders_go() -> None:
    """A distilled or stage-1 checkpoint: no head, no norm before it, and decoders."""
    weights = official("internvideo2-f8")
    for name in ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"):
        del weights[name]
    weights |= {"clip_decoder.0.head.weight": torch.zeros(2, 2), "clip_pos_embed": torch.zeros(1, 2, 2)}
    _, ours = convert_weights(weights, geometry("internvideo2-f8"), "x")
    assert not any(name.startswith("classifier.") for name in ours)
    assert torch.equal(ours["internvideo2.attention_pooling.norm.weight"], torch.ones(16))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"model": {"a": torch.zeros(1), "b": 3}}, "holds int under 'b', not tensors alone"),
        ([torch.zeros(1)], "holds a list, not tensors by name"),
    ],
)
def test_a_file_that_is_not_tensors_by_name_is_refused(tmp_path: Path, content: Any, why: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=why):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_pickle_that_would_run_a_program_runs_none(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Attack()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Attack()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ModelError, match="holds more than tensors"):
            convert_checkpoint(tmp_path / name, tmp_path / "m")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_cut_short_or_missing_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"a\.pth: "):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "m")
    (tmp_path / "a.safetensors").write_bytes(b"no header")
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "m")
    with pytest.raises(ModelError, match="no such file"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "m")


def test_a_folder_that_holds_something_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="is not empty"):
        convert_checkpoint(checkpoint, tmp_path)


def test_positions_go_to_other_frame_counts_and_sizes_as_in_the_official_fine_tuning() -> None:
    """Linear along time, then bicubic in space; the class token's stays. run_finetuning.py says it so."""
    weights = official("internvideo2-f8", pos_embed=[1, 1 + 8 * 4, 32])
    config, ours = convert_weights(weights, geometry("internvideo2-f8", num_frames=12, image_size=42), "x")
    assert (config.num_frames, config.image_size) == (12, 42)
    found = ours["internvideo2.position_embeddings"]
    tokens_THWC = weights["pos_embed"][0, 1:].view(8, 2, 2, 32)
    in_time = interpolate(tokens_THWC.reshape(8, -1).T[None], size=12, mode="linear")[0].T.view(12, 2, 2, 32)
    wanted = interpolate(in_time.permute(0, 3, 1, 2), size=(3, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    assert torch.allclose(found[0, 1:], wanted.reshape(-1, 32), atol=1e-6) and torch.equal(found[:, :1], weights["pos_embed"][:, :1])


@pytest.mark.parametrize(
    ("name", "frames", "size"), [("internvideo2-separate-f3", 7, 42), ("uniformerv2-f5", 16, 48), ("internvideo2-f5", 2, 14)]
)
def test_a_converted_model_takes_clips_of_its_new_form(tmp_path: Path, name: str, frames: int, size: int) -> None:
    save_file(official(name), tmp_path / "a.safetensors")
    convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "m", geometry(name, num_frames=frames, image_size=size))
    register_video_models()
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "m").eval()
    assert model(draw_clips(0, 1, frames, size)).logits.isfinite().all()
    assert json.loads((tmp_path / "m/video_preprocessor_config.json").read_text())["crop_size"]["height"] == size


def test_frames_that_the_positions_do_not_fit_are_asked_for() -> None:
    with pytest.raises(ModelError, match=r"pos_embed has 33 positions.*--trained-frames"):
        convert_weights(official("internvideo2-f8"), geometry("internvideo2-f8", trained_frames=5), "x")
    with pytest.raises(ModelError, match="its pooling has weights for 5 frames"):
        convert_weights(official("internvideo2-cls-frames"), geometry("internvideo2-cls-frames", num_frames=8), "x")
    with pytest.raises(ModelError, match="no whole patches of 8"):
        convert_weights(official("uniformerv2-f5"), geometry("uniformerv2-f5", image_size=50), "x")
