"""The shape of a model, read from its config.json without its weights: what memory and token counts follow from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbft.config import ModelPart
from rbft.errors import ModelError


@dataclass(frozen=True)
class BlockShape:
    """A stack of transformer blocks."""

    num_layers: int
    hidden_size: int
    intermediate_size: int


@dataclass(frozen=True)
class LinearShape:
    """A linear layer of a block."""

    part: ModelPart
    name: str
    """The last part of its name, e.g. "q_proj"."""
    in_features: int
    out_features: int


@dataclass(frozen=True)
class ModelShape:
    """What `read_model_shape` found."""

    name: str
    """The class, e.g. "Qwen2_5_VLForConditionalGeneration"."""
    num_parameters: int
    """Shared ones (tied embeddings) counted once."""
    num_vision_parameters: int
    """Of these, the vision tower's without the merger: the ones that learn at `lr_vision`."""
    text: BlockShape
    vision: BlockShape
    vocab_size: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    num_of_part: dict[ModelPart, int] = field(hash=False)
    """Parameters of each part."""
    linear_layers: tuple[LinearShape, ...]
    """Of the blocks of both towers: what adapters can be put on."""
    config: Any = field(repr=False, compare=False)
    """The transformers configuration all this was read from."""

    @property
    def token_side(self) -> int:
        """Pixels along one side of the square that becomes one token."""
        return self.patch_size * self.merge_size


def read_model_shape(folder: str | Path) -> ModelShape:
    """The shape of the video chat model in `folder`; needs config.json only. Raises `ModelError` if there is none to be read."""
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json there; set model.path to a folder with a Hugging Face model")
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from rbft.models.parameter_groups import part_of

    try:
        config: Any = AutoConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        text, vision = config.text_config, config.vision_config
        num_of_part: dict[ModelPart, int] = {"vision": 0, "merger": 0, "language": 0, "embeddings": 0}
        for name, parameter in model.named_parameters():
            num_of_part[part_of(name)] += parameter.numel()
        linear_layers = tuple(
            LinearShape(part_of(f"{name}."), name.rpartition(".")[2], module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and part_of(f"{name}.") in ("language", "vision")
        )
        # Qwen2-VL calls the width of its tower embed_dim, and hidden_size what the merger makes of it.
        vision_hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
        vision_intermediate = getattr(vision, "intermediate_size", None) or int(vision_hidden * vision.mlp_ratio)
        if not num_of_part["vision"]:
            raise ValueError(f"{type(model).__name__} has no vision tower; give a Qwen2-VL or Qwen2.5-VL model")
        return ModelShape(
            name=type(model).__name__,
            num_parameters=sum(num_of_part.values()),
            num_vision_parameters=num_of_part["vision"],
            text=BlockShape(text.num_hidden_layers, text.hidden_size, text.intermediate_size),
            vision=BlockShape(vision.depth, vision_hidden, vision_intermediate),
            vocab_size=text.vocab_size,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            num_of_part=num_of_part,
            linear_layers=linear_layers,
            config=config,
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: no video chat model can be made from its config.json: {first_line}") from None
