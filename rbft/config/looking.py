"""What is asked about where a model looks: masks over objects (Table 5), attention on the frames (Figure 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rbft.config.section import Section


class MaskingConfig(Section):
    """Masks over the most salient objects, and over random places of equal area (readings, 23)."""

    boxes: str | None = None
    """A file with boxes (`rbft.evaluation.looking.box_files`); where it is given, nothing is searched for."""
    find: Literal["saliency", "grounding"] = "saliency"
    """How objects are found without a file: by what moves and stands out, or by the base model's own grounding (Qwen2.5-VL)."""
    num_objects: int = Field(3, gt=0)
    """Of a video, the most salient ones first (paper 4.3)."""
    fill: Literal["mean", "black", "gray"] = "mean"
    """What stands in place of a masked pixel: the clip's mean colour, so that a mask itself stands out little; black; or gray, 128."""
    seed: int = Field(0, ge=0)
    """Of the random places."""

    @field_validator("boxes")
    @classmethod
    def _boxes_are_local(cls, boxes: str | None) -> str | None:
        if boxes is not None and "://" in boxes:
            raise ValueError("boxes must be a path on a disk that all nodes share; copy the file there")
        return boxes


class AttentionConfig(Section):
    """Attention from where the label begins to the video (readings, 24)."""

    method: Literal["attention", "gradient"] = "attention"
    """The attention itself; or weighted with its effect on the answer, gradient x attention, which goes beyond the paper."""
    num_layers: int = Field(4, gt=0)
    """The last ones of the language model, averaged; all of a model that has fewer."""
    num_shown: int = Field(12, ge=0)
    """Videos of which Figure 2 shows the heatmaps; the numbers are of all."""
