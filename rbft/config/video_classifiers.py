"""Specialised video models as systems of an evaluation: Hugging Face video classifiers, fine-tuned on the same split."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rbft.config.classifier_recipes import RECIPES
from rbft.config.section import Section
from rbft.config.training import TrainingConfig


class VideoClassifierConfig(Section):
    """One model that is fine-tuned with a new head for the task's labels. The defaults are those of a short fine-tuning of a model that was
    pretrained on other videos, as transformers' own guide to video classification does it; no paper's. `recipe` has those of papers."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What reports and folders call it."""
    path: str
    """The folder of a model that `AutoModelForVideoClassification` loads (VideoMAE, ViViT, TimeSformer, V-JEPA 2, …), pretrained or
    fine-tuned on something else, with the configuration of its video or image processor."""
    recipe: str | None = None
    """One of `RECIPES`: the settings with which the model's authors fine-tuned it, where no other is given here."""
    num_frames: int | None = Field(None, ge=2, multiple_of=2)
    """Frames a clip, evenly spaced over the whole trimmed clip; None is the model's own number. Another one needs a model that has no
    weights for each frame (VideoMAE, V-JEPA 2)."""
    fit: Literal["crop", "stretch"] = "crop"
    """How a frame becomes the model's square: "crop" as its processor does it (the shorter side resized, the middle cut out); "stretch"
    squeezes the whole frame into it, so that nothing at the sides goes unseen."""
    num_clips: int = Field(1, ge=1, le=16)
    """Clips of each video whose answers are averaged. With several, the frames of clip k of K lie k/(K+1) into the intervals of which a
    clip has one frame each, and in training a frame is drawn in each interval, from K+1 (sparse sampling)."""
    num_crops: Literal[1, 3] = 1
    """Parts of each frame whose answers are averaged: the middle, or both ends of its longer side too. 3 needs `fit: crop`."""
    random_crop: bool = True
    """In training: a random part of the frame, the same in all frames of a clip."""
    least_area: float = Field(0.5, gt=0, le=1)
    """Of that part, as a share of the frame's. 0.08 is that of large pretraining."""
    random_augment: int = Field(0, ge=0, le=8)
    """In training: operations of RandAugment a clip (colours, shifts, turns), each left out half of the time."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """In training: the share of clips in which a rectangle is noise."""
    mixup: float = Field(0.0, ge=0)
    """In training: alpha of the Beta distribution by which two clips of a micro-batch are blended, labels too; 0: never."""
    cutmix: float = Field(0.0, ge=0)
    """The same of a rectangle of one clip set into another. With both, each half of the time."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    random_flip: bool = True
    """In training: mirrored left to right half of the time. Not for tasks with text or sides in them."""
    epochs: int = Field(10, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    """The peak, after warm-up; it then falls to the final one as a cosine."""
    initial_learning_rate: float = Field(0.0, ge=0)
    """Where warm-up begins."""
    final_learning_rate: float = Field(0.0, ge=0)
    learning_rate_batch: int | None = Field(None, gt=0)
    """Clips a step that the three rates are for: with another `global_batch_size` they are scaled in proportion. None: as they are."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The rate of a layer is that of the next one times this; head and pooling have the full rate."""
    drop_path_rate: float | None = Field(None, ge=0, lt=1)
    """Of the last layer in training, rising from 0 in the first; None: as the model's configuration has it."""
    weight_decay: float = Field(0.05, ge=0)
    """Not of biases and norms."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    """None: gradients are not clipped."""
    global_batch_size: int = Field(16, gt=0)
    micro_batch_size: int = Field(2, gt=0)
    """Clips a worker takes at once, in training and in prediction."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """"bf16": weights in float32, activations in bfloat16 by autocast."""
    gradient_checkpointing: bool = False
    class_balance: Literal["none", "sampling", "loss"] = "none"
    """As `training.class_balance`."""

    @model_validator(mode="before")
    @classmethod
    def _a_recipe_is_filled_in(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("recipe") is None:
            return given
        if given["recipe"] not in RECIPES:
            raise ValueError(f"recipe {given['recipe']!r} is none of {', '.join(RECIPES)}")
        return RECIPES[given["recipe"]] | given

    @model_validator(mode="after")
    def _fits_together(self) -> VideoClassifierConfig:
        if self.num_crops > 1 and self.fit == "stretch":
            raise ValueError("num_crops 3 has nothing to cut off from frames that are stretched; set fit to crop, or num_crops to 1")
        if max(self.mixup, self.cutmix) > 0 and self.micro_batch_size < 2:
            raise ValueError("mixup and cutmix blend the clips of a micro-batch; set micro_batch_size to 2 or more, or both to 0")
        return self

    def training(self, of_run: TrainingConfig) -> TrainingConfig:
        """How this model is trained: the run's workers, checkpoints and clip cache, with the model's own batches and precision.

        Raises `ValueError` if its global batch does not divide.
        """
        own = ("global_batch_size", "micro_batch_size", "precision", "gradient_checkpointing", "class_balance")
        training = of_run.model_copy(update={name: getattr(self, name) for name in own})
        if self.global_batch_size % (of_run.num_workers * self.micro_batch_size):
            raise ValueError(
                f"evaluation.video_classifiers: {self.name}: its global_batch_size {self.global_batch_size} does not divide by "
                f"training.num_workers {of_run.num_workers} x its micro_batch_size {self.micro_batch_size}; change one of them"
            )
        return training
