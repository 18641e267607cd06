"""A clip to the input of a video classifier: as its checkpoint's own processor makes it, in training after a random cut.

A clip is `num_frames` frames evenly spaced over the whole (trimmed) video, each at the start of an interval of the same length: the
sampling of the other systems at another rate. Where several clips of a video are seen, several frames of each interval are decoded: in
training one is drawn, in prediction each clip has its own (sparse sampling, Wang et al. 2016). They are decoded at somewhat more than the
processor's size, aspect kept, so that a decoded clip serves every epoch; the processor, or the random cut, brings them to size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from rbft.baselines.clip_augmentation import augment, erase
from rbft.records import Clip, VideoSpec

_WIDEST = 2.4
"""Cinema's aspect. Up to it, a decoded frame's shorter side is not below the processor's, so that nothing is enlarged."""
_LARGEST_ASPECT = 4 / 3
"""Of a random cut (and its inverse), as in Szegedy et al. 2015."""


@dataclass(frozen=True)
class Cut:
    """What is done to a clip in training."""

    crop: bool = True
    flip: bool = True
    least_area: float = 0.5
    """Of the random part, as a share of the frame's. 0.08 in Szegedy et al.: for pretraining, not for hundreds of clips."""
    augment: int = 0
    """Operations of RandAugment."""
    erase: float = 0.0
    """The share of clips in which a rectangle is noise."""


@dataclass(frozen=True)
class ClipForm:
    """What a clip is for a model."""

    num_frames: int
    size: int
    """Pixels, of both sides."""
    fit: Literal["crop", "stretch"] = "crop"
    num_clips: int = 1
    """Clips of a video."""

    @property
    def density(self) -> int:
        """Frames that are decoded for each that a clip has."""
        return 1 if self.num_clips == 1 else self.num_clips + 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class ClipEncoder:
    """Uses one processor; threads may call it concurrently."""

    def __init__(self, processor: Any, form: ClipForm) -> None:
        """`processor`: a transformers video processor."""
        self.processor, self.form = processor, form

    def video_spec(self, backend: str = "auto") -> VideoSpec:
        """How videos are decoded for it."""
        side = self.form.size if self.form.fit == "stretch" else max(self.form.size, self.processor.size["shortest_edge"] or 0)
        return VideoSpec(
            fps=1e-6,  # less than one frame of any clip, so that `min_frames` decides
            min_frames=self.form.num_frames * self.form.density,
            max_frames=self.form.num_frames * self.form.density,
            max_pixels=math.ceil(_WIDEST * side * side),
            min_pixels=4,
            patch_multiple=2,
            backend=backend,
        )

    def encode(self, clip: Clip) -> torch.Tensor:
        """float32 [T, 3, size, size]: the middle of the frame, of the middle clip."""
        return self.views(clip)[self.form.num_clips // 2]

    def views(self, clip: Clip, num_crops: int = 1) -> torch.Tensor:
        """float32 [clips x crops, T, 3, size, size]: all that is seen of the video."""
        frames_TCHW, density = _frames(clip), self.form.density
        starts = [0] if density == 1 else range(1, density)
        return torch.cat([self._parts(frames_TCHW[start::density], num_crops) for start in starts])

    def encode_cut(self, clip: Clip, seed: int, cut: Cut) -> torch.Tensor:
        """float32 [T, 3, size, size] of one clip, cut at random and mirrored by half a chance, all frames alike: a function of `seed`."""
        from torchvision.transforms.v2 import functional as images

        draw = np.random.default_rng(seed)
        frames_TCHW = _frames(clip)
        if self.form.density > 1:
            chosen = np.arange(self.form.num_frames) * self.form.density + draw.integers(self.form.density, size=self.form.num_frames)
            frames_TCHW = frames_TCHW[torch.from_numpy(chosen)]
        if cut.augment:
            frames_TCHW = augment(frames_TCHW, cut.augment, draw)
        if cut.flip and draw.random() < 0.5:
            frames_TCHW = frames_TCHW.flip(-1)
        if not cut.crop:
            return erase(self._whole(frames_TCHW), cut.erase, draw)
        whole_height, whole_width = frames_TCHW.shape[-2:]
        top, left, height, width = _random_part(whole_height, whole_width, self.form.fit, cut.least_area, draw)
        cut_TCHW = images.resized_crop(frames_TCHW, top, left, height, width, [self.form.size, self.form.size], antialias=True)
        return erase(self._process(cut_TCHW, do_resize=False, do_center_crop=False), cut.erase, draw)

    def _parts(self, frames_TCHW: torch.Tensor, num_crops: int) -> torch.Tensor:
        """[crops, T, 3, size, size]: the middle; or, of the frame whose shorter side is `size`, squares evenly spaced along the longer."""
        from torchvision.transforms.v2 import functional as images

        if num_crops == 1:
            return self._whole(frames_TCHW)[None]
        size = self.form.size
        resized_TCHW = images.resize(frames_TCHW, [size], antialias=True)
        height, width = resized_TCHW.shape[-2:]
        corners = [(round((height - size) * n / (num_crops - 1)), round((width - size) * n / (num_crops - 1))) for n in range(num_crops)]
        squares = [resized_TCHW[:, :, top : top + size, left : left + size] for top, left in corners]
        return torch.stack([self._process(square, do_resize=False, do_center_crop=False) for square in squares])

    def _whole(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        if self.form.fit == "stretch":
            return self._process(frames_TCHW, do_center_crop=False, size={"height": self.form.size, "width": self.form.size})
        return self._process(frames_TCHW)

    def _process(self, frames_TCHW: torch.Tensor, **how: Any) -> torch.Tensor:
        made = self.processor(videos=[frames_TCHW], return_tensors="pt", do_sample_frames=False, **how)
        (pixels_TCHW,) = next(iter(made.values()))
        return pixels_TCHW.float()


def _frames(clip: Clip) -> torch.Tensor:
    """uint8 [T, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(clip.frames_THWC)).permute(0, 3, 1, 2)


def _random_part(height: int, width: int, fit: str, least_area: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a rectangle inside a frame: of `least_area` or more of it, as far as that fits its aspect, which is
    near a square's, or near the frame's where that is stretched."""
    area = draw.uniform(least_area, 1) * height * width
    aspect = _LARGEST_ASPECT ** draw.uniform(-1, 1) * (width / height if fit == "stretch" else 1)
    part_height = min(height, max(1, round(math.sqrt(area / aspect))))
    part_width = min(width, max(1, round(math.sqrt(area * aspect))))
    return (
        int(draw.integers(height - part_height + 1)),
        int(draw.integers(width - part_width + 1)),
        part_height,
        part_width,
    )
