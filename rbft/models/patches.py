"""Frames to the patches a vision tower reads, on whatever device the frames are.

Frames travel as uint8: a quarter of the bytes of float32 pixels. They are cut and normalised where they are used, with the numerics and in
the order of transformers' `Qwen2VLVideoProcessor` (bitwise equal on the CPU; a test holds that).

Shape legend: N bytes of frames, P patches, D = 3 * temporal_patch * patch**2, T/H/W grid in patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

from rbft.errors import ModelError

Grid = tuple[int, int, int]
"""Temporal, height and width of a clip in patches."""


@dataclass(frozen=True)
class PatchLayout:
    """How a model's frames are cut into patches and normalised."""

    patch_size: int
    merge_size: int
    """Patches along one side of what becomes one token."""
    temporal_patch_size: int
    mean: tuple[float, float, float]
    """Of red, green and blue, in units of a byte (0 to 255)."""
    std: tuple[float, float, float]

    @classmethod
    def of(cls, video_processor: Any) -> PatchLayout:
        """That of a transformers video processor. Raises `ModelError` if it leaves pixels as they are."""
        if not (video_processor.do_rescale and video_processor.do_normalize):
            raise ModelError("the model's video processor does not rescale and normalise; it is not supported")
        # As transformers fuses the two: (x - mean / factor) / (std / factor), the constants in float32.
        scale = 1.0 / video_processor.rescale_factor
        mean, std = (tuple((torch.tensor(values) * scale).tolist()) for values in (video_processor.image_mean, video_processor.image_std))
        return cls(video_processor.patch_size, video_processor.merge_size, video_processor.temporal_patch_size, mean, std)

    @property
    def token_side(self) -> int:
        """Pixels along one side of the square that becomes one token."""
        return self.patch_size * self.merge_size

    def whole_patches(self, frames_THWC: torch.Tensor) -> torch.Tensor:
        """The frames, the last one repeated where their number does not divide by `temporal_patch_size`, as the processor does."""
        missing = -len(frames_THWC) % self.temporal_patch_size
        return torch.cat([frames_THWC, frames_THWC[-1:].expand(missing, -1, -1, -1)]) if missing else frames_THWC

    def grid(self, frames_THWC: torch.Tensor) -> Grid:
        """The grid of whole patches; raises `ModelError` if the frames do not divide into tokens."""
        num_frames, height, width, _ = frames_THWC.shape
        if height % self.token_side or width % self.token_side or num_frames % self.temporal_patch_size:
            raise ModelError(
                f"{num_frames} frames of {height} x {width} do not divide into tokens of {self.temporal_patch_size} frames of "
                f"{self.token_side} x {self.token_side}"
            )
        return num_frames // self.temporal_patch_size, height // self.patch_size, width // self.patch_size


def patchify(frames_N: torch.Tensor, grids: Sequence[Grid], layout: PatchLayout) -> torch.Tensor:
    """`pixel_values_videos`, float32 [P, D], of the clips whose uint8 frames [T, H, W, 3] lie one after the other in `frames_N`."""
    patch, merge, temporal = layout.patch_size, layout.merge_size, layout.temporal_patch_size
    size = 3 * temporal * patch**2
    cut, start = [], 0
    for grid_t, grid_h, grid_w in grids:
        end = start + grid_t * grid_h * grid_w * size
        shape = (grid_t, temporal, grid_h // merge, merge, patch, grid_w // merge, merge, patch, 3)
        cut.append(frames_N[start:end].view(shape).permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3, size // 3))
        start = end
    pixels_PCE = (cut[0] if len(cut) == 1 else torch.cat(cut)).to(torch.float32)
    mean, std = (torch.tensor(values, device=frames_N.device)[:, None] for values in (layout.mean, layout.std))
    return pixels_PCE.sub_(mean).div_(std).flatten(1)


def multiply_patches(model: Any) -> None:
    """Have the vision tower of `model` embed patches by the matrix product that its convolution, whose stride is its kernel, comes to.

    The convolution took a fifth of a step on the CPU, the product a fiftieth.
    """

    def project(self: Any, patches_PCTHW: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(patches_PCTHW.flatten(1), self.weight.flatten(1), self.bias)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = MethodType(project, module)
