"""Where the checkpoints are that the recipes start from: the authors' files, after Kinetics-710 and -400, 8 frames of 224 x 224.

As their model zoos link them (MODEL_ZOO.md of both repositories, at the commits of `classifier_recipes`). Nothing here downloads.
"""

from __future__ import annotations

_UNIFORMERV2 = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/uniformerv2/k400"
_DISTILLED = "https://huggingface.co/OpenGVLab/InternVideo2_distillation_models/resolve/main/stage1"

CHECKPOINTS = {
    "uniformerv2-b16": f"{_UNIFORMERV2}/k400_k710_uniformerv2_b16_8x224.pyth",
    "uniformerv2-l14": f"{_UNIFORMERV2}/k400_k710_uniformerv2_l14_8x224.pyth",
    **{
        f"internvideo2-{size.lower()}": f"{_DISTILLED}/{size}/{size}_ft_k710_ft_k400_f8/pytorch_model.bin" for size in ("S14", "B14", "L14")
    },
    "internvideo2-1b": "https://huggingface.co/OpenGVLab/InternVideo2-Stage1-1B-224p-f8-K400/resolve/main/1B_ft_k710_ft_k400_f8.pth",
}
"""Recipe (without `-transfer`) -> its file. InternVideo2's 6B is not published."""


def how_to_get(recipe: str | None, folder: str) -> str:
    """What to do so that `folder` holds the model of `recipe`."""
    url = CHECKPOINTS.get((recipe or "").removesuffix("-transfer"))
    if url is None:
        return f"copy the folder of a Hugging Face video classifier to {folder}, or make one with `rbft convert` (docs/baselines.md)"
    return f"download {url}, then: rbft convert {url.rpartition('/')[2]} --out {folder}"
