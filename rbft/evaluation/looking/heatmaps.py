"""Attention maps over frames, purple (0) to yellow (1) as in the paper's Figure 2, each map scaled on its own.

`overlay` gives a clip, so that the report shows it as it shows any clip (`rbft.evaluation.figures.frame_images`); `strip` gives one picture
of several models, one under the other.

Shape legend: T frames of H x W pixels, C colours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.boxes import FrameBoxes
from rbft.evaluation.thumbnails import shown_frames
from rbft.records import Clip

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float32,
)
"""The colour map viridis at every eighth of its length."""
_OPACITY = 0.55
_INK, _SOFT, _PAPER, _BOX = (34, 38, 43), (93, 100, 109), (255, 255, 255), (255, 255, 255)
_GAP, _TITLE = 4, 20


def colours(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 [..., 3]: the colour of each value in 0..1."""
    places = np.clip(values, 0, 1) * (len(_VIRIDIS) - 1)
    channels = [np.interp(places, np.arange(len(_VIRIDIS)), _VIRIDIS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(clip: Clip, attention: AttentionMap, num_frames: int | None = None) -> Clip:
    """`clip` under its heatmap, smooth between the centres of tokens; a token's frames have the same one.

    `num_frames`: of the whole clip, where `clip` is no more than is shown of it (`Thumbnails`).
    """
    from PIL import Image

    num_shown, height, width, _ = clip.frames_THWC.shape
    num_frames = num_shown if num_frames is None else num_frames
    scaled_THW = attention.scaled_THW
    frames_per_token = -(-num_frames // len(scaled_THW))
    frames = []
    for index, frame_HWC in zip(shown_frames(num_frames, num_shown), clip.frames_THWC, strict=True):
        heat = Image.fromarray(scaled_THW[index // frames_per_token]).resize((width, height), Image.Resampling.BILINEAR)
        frames.append((1 - _OPACITY) * frame_HWC + _OPACITY * colours(np.asarray(heat)))
    return replace(clip, frames_THWC=np.stack(frames).round().astype(np.uint8))


def strip(
    clip: Clip, attentions: Mapping[str, AttentionMap], boxes: FrameBoxes = (), *, max_frames: int = 8, frame_height: int = 112
) -> Image.Image:
    """One picture: the frames as they are, with their boxes if given, and under them a row of heatmaps for each model by its title.

    Up to `max_frames` frames, evenly spread, each `frame_height` pixels high; the times stand below, the scale at the right.
    """
    from PIL import Image, ImageDraw

    chosen = shown_frames(clip.num_frames, max_frames)
    height, width = clip.frames_THWC.shape[1:3]
    frame_width = max(1, round(width * frame_height / height))
    rows = [("frames", clip), *((title, overlay(clip, attention)) for title, attention in attentions.items())]
    row_height = _TITLE + frame_height + _GAP
    picture = Image.new("RGB", (len(chosen) * (frame_width + _GAP) + 40, len(rows) * row_height + _TITLE), _PAPER)
    draw = ImageDraw.Draw(picture)
    for row, (title, shown) in enumerate(rows):
        top = row * row_height + _TITLE
        draw.text((0, top - _TITLE + 3), title, fill=_INK, font_size=13)
        for column, index in enumerate(chosen):
            left = column * (frame_width + _GAP)
            frame = Image.fromarray(np.ascontiguousarray(shown.frames_THWC[index]))
            picture.paste(frame.resize((frame_width, frame_height), Image.Resampling.BICUBIC), (left, top))
            for box in boxes[index] if boxes else ():
                corners = (box.x0 * frame_width, box.y0 * frame_height, box.x1 * frame_width - 1, box.y1 * frame_height - 1)
                draw.rectangle([left + corners[0], top + corners[1], left + corners[2], top + corners[3]], outline=_BOX)
    for column, index in enumerate(chosen):
        text = f"{clip.timestamps_s[index]:.1f} s"
        draw.text((column * (frame_width + _GAP), len(rows) * row_height), text, fill=_SOFT, font_size=12)
    if attentions:
        _scale(picture, draw, left=len(chosen) * (frame_width + _GAP) + 4, top=row_height + _TITLE, height=frame_height)
    return picture


def frame_pngs(clip: Clip) -> list[bytes]:
    """Each frame of `clip` (of an `overlay`, say) as the bytes of a PNG file."""
    from PIL import Image

    return [png(Image.fromarray(np.ascontiguousarray(frame_HWC))) for frame_HWC in clip.frames_THWC]


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _scale(picture: Image.Image, draw: ImageDraw.ImageDraw, *, left: int, top: int, height: int) -> None:
    """What the colours mean: a bar from 0, below, to 1."""
    from PIL import Image

    bar_H = colours(np.linspace(1, 0, height, dtype=np.float32))
    picture.paste(Image.fromarray(np.repeat(bar_H[:, None], 10, axis=1)), (left, top))
    labels: Sequence[tuple[str, int]] = (("1", top), ("0", top + height - 14))
    for text, y in labels:
        draw.text((left + 15, y), text, fill=_SOFT, font_size=12)
