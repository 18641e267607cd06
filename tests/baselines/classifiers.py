"""Tiny random video classifiers of every kind, in folders as the hubs have them: weights, configuration, processor configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForVideoClassification,
    TimesformerConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VivitConfig,
    VJEPA2Config,
    VJEPA2Model,
)

from rbft.models.video import register_video_models
from rbft.models.video.convert import processor_settings
from rbft.models.video.internvideo2 import InternVideo2Config
from rbft.models.video.uniformerv2 import UniFormerV2Config

Kind = Literal["videomae", "vivit", "timesformer", "vjepa2", "uniformerv2", "internvideo2"]
KINDS: tuple[Kind, ...] = ("videomae", "vivit", "timesformer", "vjepa2", "uniformerv2", "internvideo2")
NUM_FRAMES, SIZE = 4, 32

_BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT: dict[str, Any] = _BODY | {"image_size": SIZE, "num_frames": NUM_FRAMES, "intermediate_size": 64}
_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_PROCESSOR: dict[str, Any] = {
    **{"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 2},
    **{"crop_size": {"height": SIZE, "width": SIZE}, "size": {"shortest_edge": 36}, "rescale_factor": 1 / 255},
}


def _config(kind: Kind) -> Any:
    match kind:
        case "videomae":
            return VideoMAEConfig(**_VIT, **_DECODER, patch_size=16, tubelet_size=2)
        case "vivit":
            return VivitConfig(**_VIT, tubelet_size=[2, 16, 16], hidden_dropout_prob=0.1)
        case "timesformer":
            return TimesformerConfig(**_VIT, patch_size=16, hidden_dropout_prob=0.1)
        case "vjepa2":
            predictor = {
                f"pred_{name}": value for name, value in (("hidden_size", 24), ("num_attention_heads", 2), ("num_hidden_layers", 1))
            }
            frames = {"crop_size": SIZE, "patch_size": 16, "frames_per_clip": NUM_FRAMES, "tubelet_size": 2, "mlp_ratio": 2}
            return VJEPA2Config(**_BODY, **frames, **predictor, pred_num_mask_tokens=1, num_pooler_layers=1)
        case "uniformerv2":
            local = {"has_local_blocks": True, "local_size": 16, "halves_time": True}
            return UniFormerV2Config(**_VIT, **local, patch_size=8, global_layers=[0, 1])
        case "internvideo2":
            return InternVideo2Config(**_VIT, patch_size=8, pooling_size=32, num_pooling_heads=2)


def _processor(kind: Kind) -> tuple[str, dict[str, Any]]:
    """File name and content, as published checkpoints have them: the older ones are of image processors that are no more."""
    match kind:
        case "videomae":
            size = {"size": 36, "crop_size": SIZE}
            return "preprocessor_config.json", _PROCESSOR | _IMAGENET | size | {"feature_extractor_type": "VideoMAEFeatureExtractor"}
        case "vivit":
            half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "offset": True, "rescale_factor": 1 / 127.5}
            return "preprocessor_config.json", _PROCESSOR | half | {"image_processor_type": "VivitImageProcessor"}
        case "timesformer":
            about = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3, "feature_extractor_type": "VideoMAEFeatureExtractor"}
            return "preprocessor_config.json", _PROCESSOR | about
        case "vjepa2":
            return "video_preprocessor_config.json", _PROCESSOR | _IMAGENET | {"video_processor_type": "VJEPA2VideoProcessor"}
        case "uniformerv2" | "internvideo2":
            return "video_preprocessor_config.json", processor_settings(_config(kind))


def make_tiny_classifier(folder: Path, kind: Kind, seed: int = 0, num_labels: int = 3, *, pretrained_only: bool = False) -> Path:
    """A random classifier of `num_labels` classes in `folder`, or with `pretrained_only` what a pretraining leaves; returns `folder`."""
    register_video_models()
    torch.manual_seed(seed)
    config = _config(kind)
    config.num_labels = num_labels
    if pretrained_only:
        model = {"videomae": VideoMAEForPreTraining, "vjepa2": VJEPA2Model}[kind](config)
    else:
        model = AutoModelForVideoClassification.from_config(config)
    model.save_pretrained(folder)
    name, content = _processor(kind)
    (folder / name).write_text(json.dumps(content))
    return folder
