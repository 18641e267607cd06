"""Colours, shifts and turns of whole clips (RandAugment, Cubuk et al. 2020), and noise in a rectangle (Zhong et al. 2020).

As both official recipes have them (timm's rand-m7-n4-mstd0.5-inc1): operations are drawn one after the other from all, each is left out
half of the time, and its strength is 7 of 10, give or take 0.5. All frames of a clip alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

_STRENGTH, _SPREAD, _STRONGEST = 7.0, 0.5, 10.0
_LEAST_ERASED, _MOST_ERASED, _ERASED_ASPECT = 0.02, 1 / 3, 1 / 0.3
"""Share of the frame's area, and the largest aspect of the rectangle."""
_TRIES = 10
_GREY = [128, 128, 128]

Operation = Callable[[torch.Tensor, float, float], torch.Tensor]
"""Of uint8 frames [T, 3, height, width], a strength from 0 to 1, and a sign."""


def augment(frames_TCHW: torch.Tensor, num_operations: int, draw: np.random.Generator) -> torch.Tensor:
    """uint8 frames with up to `num_operations` operations done to all of them."""
    operations = list(_operations().values())
    for _ in range(num_operations):
        operation = operations[draw.integers(len(operations))]
        strength = float(np.clip(draw.normal(_STRENGTH, _SPREAD), 0, _STRONGEST)) / _STRONGEST
        sign = 1.0 if draw.random() < 0.5 else -1.0
        if draw.random() < 0.5:
            frames_TCHW = operation(frames_TCHW, strength, sign)
    return frames_TCHW


def _operations() -> dict[str, Operation]:
    from torchvision.transforms.v2 import functional as images

    def moved(
        frames: torch.Tensor, *, angle: float = 0, across: float = 0, down: float = 0, shear: tuple[float, float] = (0, 0)
    ) -> torch.Tensor:
        """`across` and `down` as shares of width and height; angles in degrees."""
        shift = [round(across * frames.shape[-1]), round(down * frames.shape[-2])]
        return images.affine(frames, angle, shift, 1.0, list(shear), interpolation=images.InterpolationMode.BILINEAR, fill=_GREY)

    def solarize_add(frames: torch.Tensor, strength: float, _sign: float) -> torch.Tensor:
        brighter = (frames.to(torch.int16) + int(strength * 110)).clamp(max=255).to(torch.uint8)
        return torch.where(frames < 128, brighter, frames)

    def slant(strength: float, sign: float) -> float:
        return math.degrees(math.atan(sign * strength * 0.3))

    return {
        "autocontrast": lambda frames, _strength, _sign: images.autocontrast(frames),
        "equalize": lambda frames, _strength, _sign: images.equalize(frames),
        "invert": lambda frames, _strength, _sign: images.invert(frames),
        "rotate": lambda frames, strength, sign: moved(frames, angle=sign * strength * 30),
        "posterize": lambda frames, strength, _sign: images.posterize(frames, 4 - int(strength * 4)),
        "solarize": lambda frames, strength, _sign: images.solarize(frames, 256.0 - int(strength * 256)),
        "solarize_add": solarize_add,
        "colour": lambda frames, strength, sign: images.adjust_saturation(frames, 1 + sign * strength * 0.9),
        "contrast": lambda frames, strength, sign: images.adjust_contrast(frames, 1 + sign * strength * 0.9),
        "brightness": lambda frames, strength, sign: images.adjust_brightness(frames, 1 + sign * strength * 0.9),
        "sharpness": lambda frames, strength, sign: images.adjust_sharpness(frames, 1 + sign * strength * 0.9),
        "shear_x": lambda frames, strength, sign: moved(frames, shear=(slant(strength, sign), 0)),
        "shear_y": lambda frames, strength, sign: moved(frames, shear=(0, slant(strength, sign))),
        "translate_x": lambda frames, strength, sign: moved(frames, across=sign * strength * 0.45),
        "translate_y": lambda frames, strength, sign: moved(frames, down=sign * strength * 0.45),
    }


def erase(pixels_TCHW: torch.Tensor, share: float, draw: np.random.Generator) -> torch.Tensor:
    """Normalised pixels, for a `share` of clips with a rectangle of them replaced by noise, the same rectangle in all frames."""
    if share == 0 or draw.random() >= share:
        return pixels_TCHW
    height, width = pixels_TCHW.shape[-2:]
    for _ in range(_TRIES):
        area = draw.uniform(_LEAST_ERASED, _MOST_ERASED) * height * width
        aspect = _ERASED_ASPECT ** draw.uniform(-1, 1)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
            noise = draw.standard_normal((*pixels_TCHW.shape[:2], rows, columns)).astype(np.float32)
            erased = pixels_TCHW.clone()
            erased[:, :, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return erased
    return pixels_TCHW
