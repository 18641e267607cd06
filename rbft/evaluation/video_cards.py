"""A video as a page shows it: its frames with what the model looked at below them, and of each system the answer and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbft.evaluation.cells import Cell
from rbft.evaluation.figures import FrameImage, frame_images
from rbft.evaluation.report_data import ShownVideo
from rbft.records import Prediction

MAX_BARS = 3
"""Probabilities shown of an answer: the largest, and the true label's whatever it is."""


@dataclass(frozen=True)
class VideoCard:
    """One video, drawn."""

    video: ShownVideo
    frames: tuple[tuple[FrameImage, FrameImage | None], ...]
    """(frame, the same under its heatmap)."""
    bars: dict[str, tuple[tuple[str, float], ...]]
    """System -> (label, probability), the largest first; empty for one that gives none."""
    anchors: tuple[str, ...]
    """Of the cells that it lies in."""
    places: dict[str, int]
    """Matrix ("0-likelihood") -> place in its cell there, from 0."""

    @property
    def style(self) -> str:
        """The places as properties for the style sheet."""
        return "; ".join(f"--in-{matrix}: {place}" for matrix, place in self.places.items())


def make_cards(videos: Sequence[ShownVideo], cells: Sequence[Cell], labels: Sequence[str]) -> tuple[VideoCard, ...]:
    """The cards of `videos`, in their order."""
    found: dict[str, list[tuple[Cell, int]]] = {video.id: [] for video in videos}
    for cell in cells:
        for place, id_ in enumerate(cell.ids):
            if id_ in found:
                found[id_].append((cell, place))
    return tuple(
        VideoCard(
            video=video,
            frames=_frames(video),
            bars={system: probability_bars(row, labels) for system, row in video.answers.items()},
            anchors=tuple(cell.anchor for cell, _ in found[video.id]),
            places={cell.matrix: place for cell, place in found[video.id]},
        )
        for video in videos
    )


def probability_bars(row: Prediction, labels: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """(label, probability) of up to `MAX_BARS` labels, the largest first, the true label among them."""
    by_size = sorted(((label, row.probabilities[label]) for label in labels if label in row.probabilities), key=lambda pair: -pair[1])
    truth = [pair for pair in by_size[MAX_BARS:] if pair[0] == row.label]
    return (*by_size[: MAX_BARS - len(truth)], *truth)


def _frames(video: ShownVideo) -> tuple[tuple[FrameImage, FrameImage | None], ...]:
    if video.clip is None:
        return ()
    frames = frame_images(video.clip)
    if video.attention is None:
        return tuple((frame, None) for frame in frames)
    return tuple(zip(frames, frame_images(video.attention), strict=True))
