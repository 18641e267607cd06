"""Officially published checkpoints of UniFormerV2 and InternVideo2 as folders that transformers, and a run, can load.

    convert_checkpoint("k400_k710_uniformerv2_b16_8x224.pyth", "/data/models/uniformerv2-b16-k400")

What the model is, is told from names and shapes of its weights (`official_configs`); `official_keys` has each name.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rbft.errors import ModelError
from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
from rbft.models.video.official_configs import Geometry, Weights, internvideo2_config, uniformerv2_config
from rbft.models.video.official_keys import POOLED_ALWAYS, PRETRAINING_ONLY, Keys, internvideo2_keys, uniformerv2_keys
from rbft.models.video.pickled import pickled_to_safetensors
from rbft.models.video.positions import resize_places, resize_times
from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification

Config = UniFormerV2Config | InternVideo2Config

_SPREADS = {"uniformerv2": ([0.45] * 3, [0.225] * 3), "internvideo2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}
"""Mean and standard deviation of the pixels in the official data pipelines."""
_MAX_NAMED = 5
"""Keys that a message names."""


def convert_checkpoint(checkpoint: str | Path, target: str | Path, geometry: Geometry | None = None) -> str:
    """Write the folder `target` of the model in the file `checkpoint` (.pth, .pyth, .bin or .safetensors); what it is, in words.

    The head stays as it is: a run replaces it by one for its own labels. Raises `ModelError` if the file is not of tensors alone, of
    neither model, lacks keys or has some that the model has not (by name), or if `target` holds something.
    """
    folder = Path(target)
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{target}: is not empty; give a new folder")
    weights = read_weights(Path(checkpoint))
    config, ours = convert_weights(weights, geometry or Geometry(), str(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [model_class(config).__name__]
    config.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor_settings(config), indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, folder / "model.safetensors", {"format": "pt"})
    num = sum(tensor.numel() for tensor in ours.values())
    return f"{config.model_type}: {num / 1e6:.1f}M weights, {config.num_frames} frames of {config.image_size} x {config.image_size}"


def read_weights(checkpoint: Path) -> Weights:
    """The tensors of the file by name; pickled ones are read in a child process."""
    if checkpoint.suffix == ".safetensors":
        try:
            return load_file(checkpoint)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{checkpoint}: is no whole safetensors file ({error}); copy it again") from None
    with tempfile.TemporaryDirectory(prefix="rbft-convert-") as folder:
        path = Path(folder) / "weights.safetensors"
        pickled_to_safetensors(checkpoint, path)
        return load_file(path)


def convert_weights(weights: Mapping[str, torch.Tensor], geometry: Geometry, where: str) -> tuple[Config, Weights]:
    """Configuration and weights of ours of the official `weights`; `where` begins messages. Raises `ModelError`."""
    weights = {name.removeprefix("module.").removeprefix("backbone.").removeprefix("encoder."): value for name, value in weights.items()}
    if "transformer.temporal_cls_token" in weights and "conv1.weight" in weights:
        config = uniformerv2_config(weights, geometry)
        keys = uniformerv2_keys(config)
    elif "patch_embed.proj.weight" in weights and "blocks.0.norm1.weight" in weights:
        weights = {name: value for name, value in weights.items() if not name.startswith(PRETRAINING_ONLY)}
        weights = _with_norm_of_pretrained(weights)
        config = internvideo2_config(weights, geometry, where)
        keys = internvideo2_keys(config)
        if not config.pooling.endswith("attention"):
            weights = {name: value for name, value in weights.items() if not name.startswith(POOLED_ALWAYS)}
    else:
        some = ", ".join(sorted(weights)[:_MAX_NAMED])
        raise ModelError(f"{where}: is of neither UniFormerV2 nor InternVideo2 (its first weights: {some}); give one of their checkpoints")
    heads = {official for official, ours in keys.items() if ours[0].startswith("classifier.")}
    if not heads & weights.keys():  # what pretraining leaves; a run draws the head
        keys = {official: ours for official, ours in keys.items() if official not in heads}
    _require_same_names(weights, keys, where)
    config.num_labels = len(weights[next(iter(heads & weights.keys()))]) if heads & weights.keys() else 2
    return _resized(config, _renamed(config, weights, keys, where), geometry)


def processor_settings(config: Config) -> dict[str, Any]:
    """As in the official evaluation: the shorter side to the model's size, the middle cut out."""
    mean, std = _SPREADS[config.model_type]
    size = config.image_size
    return {
        **{"video_processor_type": "VideoMAEVideoProcessor", "do_resize": True, "resample": 2, "size": {"shortest_edge": size}},
        **{"do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255},
        **{"do_normalize": True, "image_mean": mean, "image_std": std, "do_sample_frames": False},
    }


def model_class(config: Config) -> type[UniFormerV2ForVideoClassification] | type[InternVideo2ForVideoClassification]:
    """Whose configuration it is."""
    return UniFormerV2ForVideoClassification if isinstance(config, UniFormerV2Config) else InternVideo2ForVideoClassification


def _with_norm_of_pretrained(weights: Weights) -> Weights:
    """Pretraining has no norm behind the pooling: fine-tuning begins with one that does nothing but norm."""
    if "head.weight" in weights or "fc_norm.weight" in weights or "clip_projector.cross_attn.proj.bias" not in weights:
        return weights
    bias = weights["clip_projector.cross_attn.proj.bias"]
    return weights | {"fc_norm.weight": torch.ones_like(bias), "fc_norm.bias": torch.zeros_like(bias)}


def _require_same_names(weights: Weights, keys: Keys, where: str) -> None:
    lacking, unknown = sorted(keys.keys() - weights.keys()), sorted(weights.keys() - keys.keys())
    problems = [f"{what} {_named(names)}" for what, names in (("lacks", lacking), ("has unexpected", unknown)) if names]
    if problems:
        raise ModelError(f"{where}: {' and '.join(problems)}; give the whole checkpoint of a published model")


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest


def _renamed(config: Config, weights: Weights, keys: Keys, where: str) -> Weights:
    with torch.device("meta"):
        wanted = model_class(config)(config).state_dict()
    made: Weights = {}
    for official, ours in keys.items():
        for name, part in zip(ours, weights[official].chunk(len(ours)) if len(ours) > 1 else (weights[official],), strict=True):
            shape = wanted[name].shape
            if [n for n in part.shape if n > 1][:1] != [n for n in shape if n > 1][:1] or part.numel() != shape.numel():
                raise ModelError(f"{where}: {official} is {list(part.shape)}, wanted {list(shape)}; give a checkpoint of a published model")
            made[name] = part.reshape(shape).clone()
    return made


def _resized(config: Config, ours: Weights, geometry: Geometry) -> tuple[Config, Weights]:
    """Brought to the frames and the size that are wanted: position embeddings are interpolated, as the official fine-tuning does it."""
    size, frames = geometry.image_size or config.image_size, geometry.num_frames or config.num_frames
    if size % config.patch_size:
        raise ModelError(f"frames of {size} x {size} are no whole patches of {config.patch_size}; give a multiple of it as image size")
    grid, old_frames = size // config.patch_size, config.num_frames
    config.image_size, config.num_frames = size, frames
    if isinstance(config, UniFormerV2Config):
        name = "uniformerv2.position_embeddings"
        first, places = ours[name][:1], ours[name][1:]
        return config, ours | {name: torch.cat([first, resize_places(places, grid)])}
    if frames % config.tubelet_size:
        raise ModelError(f"{frames} frames are no whole tubelets of {config.tubelet_size}; give a multiple of it as number of frames")
    old, new = old_frames // config.tubelet_size, frames // config.tubelet_size
    if old != new and "frames" in config.pooling:
        raise ModelError(f"its pooling has weights for {old_frames} frames; leave the number of frames as it is")
    if config.separate_positions:
        place, time = "internvideo2.place_embeddings", "internvideo2.time_embeddings"
        return config, ours | {place: resize_places(ours[place], grid), time: resize_times(ours[time][0], new)[None]}
    name = "internvideo2.position_embeddings"
    first, rest = ours[name][:, :1], ours[name][0, 1:].unflatten(0, (old, -1))
    resized = resize_places(resize_times(rest, new), grid).flatten(0, 1)
    return config, ours | {name: torch.cat([first, resized[None]], dim=1)}
