"""Specialised video models as systems of an evaluation: Hugging Face video classifiers, fine-tuned on the same split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rbft.config.section import Section
from rbft.config.training import TrainingConfig


class VideoClassifierConfig(Section):
    """One model that is fine-tuned with a new head for the task's labels. The defaults are those of a short fine-tuning of a model that was
    pretrained on other videos, as transformers' own guide to video classification does it; no paper's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What reports and folders call it."""
    path: str
    """The folder of a model that `AutoModelForVideoClassification` loads (VideoMAE, ViViT, TimeSformer, V-JEPA 2, …), pretrained or
    fine-tuned on something else, with the configuration of its video or image processor."""
    num_frames: int | None = Field(None, ge=2, multiple_of=2)
    """Frames a clip, evenly spaced over the whole trimmed clip; None is the model's own number. Another one needs a model that has no
    weights for each frame (VideoMAE, V-JEPA 2)."""
    fit: Literal["crop", "stretch"] = "crop"
    """How a frame becomes the model's square: "crop" as its processor does it (the shorter side resized, the middle cut out); "stretch"
    squeezes the whole frame into it, so that nothing at the sides goes unseen."""
    random_crop: bool = True
    """In training: a random part of the frame, the same in all frames of a clip, of half of its area or more."""
    random_flip: bool = True
    """In training: mirrored left to right half of the time. Not for tasks with text or sides in them."""
    epochs: int = Field(10, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    """The peak, after warm-up; it then falls to 0 as a cosine."""
    weight_decay: float = Field(0.05, ge=0)
    """Not of biases and norms."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    global_batch_size: int = Field(16, gt=0)
    micro_batch_size: int = Field(2, gt=0)
    """Clips a worker takes at once, in training and in prediction."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """"bf16": weights in float32, activations in bfloat16 by autocast."""
    gradient_checkpointing: bool = False
    class_balance: Literal["none", "sampling", "loss"] = "none"
    """As `training.class_balance`."""

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
