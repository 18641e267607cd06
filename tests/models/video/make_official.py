"""Makes the fixtures in `official/`: what the official code says about weights and clips of `recipe`. None of that code is here.

    python -m tests.models.video.make_official CHECKOUTS

CHECKOUTS holds UniFormerV2/ and InternVideo/, as `benchmarks/peers/official_video.py` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from benchmarks.peers.official_video import internvideo2, missing, uniformerv2
from tests.models.video.recipe import draw_clips, draw_targets, draw_weights, kept

FOLDER = Path(__file__).parent / "official"
SEED, NUM_CLIPS, NUM_LABELS = 7, 2, 3

_SMALL: dict[str, Any] = {"input_resolution": 32, "patch_size": 8, "width": 16, "layers": 4, "heads": 2, "n_dim": 16, "n_head": 2}
_UNIFORMERV2: dict[str, dict[str, Any]] = {
    # The published B/16 for Kinetics: 12 layers and 12 heads, 197 tokens a frame, global blocks behind the last four; but 24 wide.
    "uniformerv2-b16-f8": {
        **{"input_resolution": 224, "patch_size": 16, "width": 24, "layers": 12, "heads": 12, "n_dim": 24, "n_head": 12, "t_size": 8},
        **{"no_lmhra": True, "temporal_downsample": False, "return_list": [8, 9, 10, 11]},
    },
    "uniformerv2-f5": _SMALL | {"t_size": 5, "no_lmhra": True, "temporal_downsample": False, "return_list": [3]},
    "uniformerv2-several-globals": _SMALL | {"t_size": 4, "no_lmhra": True, "temporal_downsample": False, "return_list": [0, 2, 3]},
    # As published for Something-Something: local blocks, half the time.
    "uniformerv2-local-f16": _SMALL | {"t_size": 16, "no_lmhra": False, "temporal_downsample": True, "return_list": [1, 2, 3]},
    "uniformerv2-one-local-frozen": _SMALL
    | {"t_size": 4, "no_lmhra": False, "double_lmhra": False, "temporal_downsample": False, "frozen": True, "return_list": [2, 3]},
}
_TINY: dict[str, Any] = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 2, "clip_embed_dim": 16}
_CAT = {"file": "internvideo2_cat"}
_INTERNVIDEO2: dict[str, dict[str, Any]] = {
    "internvideo2-f8": _TINY | {"num_frames": 8},
    "internvideo2-f5": _TINY | {"num_frames": 5},
    "internvideo2-separate-f3": _TINY | {"num_frames": 3, "sep_pos_embed": True},
    "internvideo2-tubelets": _TINY | {"num_frames": 6, "tubelet_size": 2, "qk_normalization": False, "qkv_bias": True, "init_values": None},
    "internvideo2-extra-mlp": _TINY | {"file": "internvideo2_ap", "num_frames": 3},
    "internvideo2-cls-mean": _TINY | _CAT | {"num_frames": 4, "merge_method": "cls_avg1", "merge_norm": "LN"},
    "internvideo2-cls-frames": _TINY | _CAT | {"num_frames": 5, "merge_method": "cls_avgN", "merge_norm": "kaiming_BN"},
    "internvideo2-cls-mean-attention": _TINY | _CAT | {"num_frames": 4, "merge_method": "cls_avg1_proj", "merge_norm": "BN"},
    "internvideo2-cls-frames-attention": _TINY | _CAT | {"num_frames": 7, "merge_method": "cls_avgN_proj", "merge_norm": "LN"},
}


def main() -> None:
    checkouts = Path(sys.argv[1])
    if lacking := missing(checkouts):
        sys.exit(f"{lacking[0]}: is not there; clone the official repositories into {checkouts}")
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name, settings in _UNIFORMERV2.items():
        num_globals = len(settings["return_list"])
        own: dict[str, Any] = {"mlp_dropout": [0.0] * num_globals, "cls_dropout": 0.0, "n_layers": num_globals, "num_classes": NUM_LABELS}
        model = uniformerv2(checkouts, **settings, **own)
        about = {"num_heads": settings["heads"], "num_frames": settings["t_size"], "size": settings["input_resolution"]}
        _write(name, model, settings, about | {"global_layers": settings["return_list"]})
    for name, settings in _INTERNVIDEO2.items():
        own = {"num_classes": NUM_LABELS, "drop_path_rate": 0.0, "mlp_ratio": 4, "attn_pool_num_heads": 2}
        model = internvideo2(checkouts, **settings, **own)
        about = {"num_heads": settings["num_heads"], "num_frames": settings["num_frames"], "size": settings["img_size"]}
        _write(name, model, settings, about | {"num_pooling_heads": 2})


def _write(name: str, model: torch.nn.Module, settings: dict[str, Any], about: dict[str, Any]) -> None:
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    clips = draw_clips(SEED, NUM_CLIPS, about["num_frames"], about["size"])
    made = {f"initial/{key}": value.clone() for key, value in model.state_dict().items() if key.startswith("pos_embed")}
    # In training mode norms of batches take the clips' own statistics; dropout and drop path are 0.
    for mode in ("eval", "train"):
        model.load_state_dict(draw_weights(SEED, shapes))
        model.train(mode == "train").zero_grad()
        logits = model(clips.transpose(1, 2))
        loss = cross_entropy(logits, draw_targets(NUM_CLIPS, NUM_LABELS))
        loss.backward()
        made |= {f"{mode}/logits": logits.detach(), f"{mode}/loss": loss.detach()}
        made |= {f"{mode}/{key}": kept(value.grad) for key, value in model.named_parameters() if value.grad is not None}
        if mode == "train" and all(
            torch.equal(made[key], made[key.replace("train/", "eval/")]) for key in made if key.startswith("train/")
        ):
            made = {key: value for key, value in made.items() if not key.startswith("train/")}
    header = {"seed": SEED, "num_clips": NUM_CLIPS, "num_labels": NUM_LABELS, "official": settings, "shapes": shapes} | about
    save_file(made, FOLDER / f"{name}.safetensors", {"about": json.dumps(header)})


if __name__ == "__main__":
    main()
