"""Specialised video models that transformers has not: UniFormerV2 and InternVideo2, written afresh in its conventions.

register_video_models()
AutoModelForVideoClassification.from_pretrained("/data/models/uniformerv2-b16-k400")
"""

from __future__ import annotations


def register_video_models() -> None:
    """Make them known to AutoConfig, AutoModelForVideoClassification and AutoVideoProcessor; again does nothing."""
    from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor, VideoMAEVideoProcessor

    from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
    from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification

    for config, model in (
        (UniFormerV2Config, UniFormerV2ForVideoClassification),
        (InternVideo2Config, InternVideo2ForVideoClassification),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForVideoClassification.register(config, model, exist_ok=True)
        AutoVideoProcessor.register(config, VideoMAEVideoProcessor, exist_ok=True)
