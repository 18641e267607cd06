"""Micro-batches for training: samples end to end in one row (packed), or one a row and padded to the longest.

What follows from sizes alone (3-D positions, the vision tower's positions, windows and boundaries) is worked out here, on the CPU and
before the step, so that the device is not stopped to be asked for numbers. Decoding and tokenising are done ahead; this is done between two
steps, by the thread that trains. Frames stay uint8 and travel in one piece.

Shape legend: B samples, L tokens of a row, N bytes of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import pad as pad_sides
from torch.nn.utils.rnn import pad_sequence

from rbft.models.chat import IGNORE_INDEX, EncodedSample
from rbft.models.positions import rope_index

MicroBatch = dict[str, Any]
"""Keyword arguments of `rbft.training.loss.SupervisedLoss`: tensors on the CPU, and plain ints where no device needs them."""


class Sizes(Protocol):
    """What is asked of a `rbft.models.chat.ChatAdapter`."""

    @property
    def vision_config(self) -> Any: ...

    @property
    def pad_token_id(self) -> int: ...


_STAYS = "video_grid_thw"
"""Read as numbers on the host alone, which would have to wait for the device to get them back."""


def pack(samples: Sequence[EncodedSample], adapter: Sizes) -> MicroBatch:
    """The samples in one row of L = the sum of their lengths, without padding and without a mask.

    `position_ids` [4, 1, L] are a row that restarts at 0 with every sample, from which transformers' own attention makes a block-diagonal
    mask, and the 3-D positions of each sample alone; `cu_seq_lens_q` and `_k` [B + 1] are the boundaries between samples. The first token
    of a sample is never supervised, so none is predicted from the sample before it.
    """
    lengths = [len(sample.input_ids_L) for sample in samples]
    boundaries = pad_sides(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    labels_L = torch.cat([sample.labels_L for sample in samples])
    labels_L[boundaries[:-1].long()] = IGNORE_INDEX
    restarting_L = torch.cat([torch.arange(length) for length in lengths])
    positions_3L = torch.cat([_positions(sample, adapter) for sample in samples], dim=1)
    batch: MicroBatch = {
        "input_ids": torch.cat([sample.input_ids_L for sample in samples])[None],
        "position_ids": torch.cat([restarting_L[None], positions_3L])[:, None],
        "labels": labels_L[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    if any(sample.weight != 1.0 for sample in samples):
        batch["token_weights"] = torch.cat([_weights(sample) for sample in samples])[None]
    return batch | _vision(samples, adapter)


def pad(samples: Sequence[EncodedSample], adapter: Sizes) -> MicroBatch:
    """One sample a row, padded on the right to the longest; `position_ids` [3, B, L]."""

    def rows(values: list[torch.Tensor], padding: int = 0) -> torch.Tensor:
        return pad_sequence(values, batch_first=True, padding_value=padding)

    batch: MicroBatch = {
        "input_ids": rows([sample.input_ids_L for sample in samples], adapter.pad_token_id),
        "attention_mask": rows([torch.ones_like(sample.input_ids_L) for sample in samples]),
        "position_ids": rows([_positions(sample, adapter).T for sample in samples]).permute(2, 0, 1),
        "labels": rows([sample.labels_L for sample in samples], IGNORE_INDEX),
    }
    if any(sample.weight != 1.0 for sample in samples):
        batch["token_weights"] = rows([_weights(sample) for sample in samples])
    return batch | _vision(samples, adapter)


def to_device(batch: MicroBatch, device: torch.device | str) -> MicroBatch:
    """The batch with its tensors on `device`, but for those that are read on the host."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) and name != _STAYS else value
        for name, value in batch.items()
    }


def _positions(sample: EncodedSample, adapter: Sizes) -> torch.Tensor:
    """[3, L]"""
    vision = adapter.vision_config
    positions_3BL, _ = rope_index(
        sample.input_ids_L[None],
        sample.mm_token_type_ids_L[None],
        video_grid_thw=sample.grid_thw[None],
        second_per_grid_ts=torch.tensor([sample.second_per_grid_ts]),
        merge_size=vision.spatial_merge_size,
        tokens_per_second=getattr(vision, "tokens_per_second", None),
    )
    return positions_3BL[:, 0]


def _weights(sample: EncodedSample) -> torch.Tensor:
    return torch.full(sample.labels_L.shape, sample.weight)


def _vision(samples: Sequence[EncodedSample], adapter: Sizes) -> MicroBatch:
    """Frames, grids, and what transformers would work out of the grids on the device (`transformers.vision_utils`)."""
    grids = torch.stack([sample.grid_thw for sample in samples])
    return {
        "frames": torch.cat([sample.frames_THWC.flatten() for sample in samples]),
        _STAYS: grids,
        **vision_indices(grids, adapter.vision_config),
    }


def vision_indices(grids: torch.Tensor, vision: Any) -> MicroBatch:
    """Positions, boundaries and windows for the vision tower with configuration `vision` of clips of these grids (int64 [B, 3])."""
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    boundaries = get_vision_cu_seqlens(grids)
    indices: MicroBatch = {
        "video_position_ids": get_vision_position_ids(grids, vision.spatial_merge_size),
        "video_cu_seqlens": boundaries,
        "video_max_seqlen": int(boundaries.diff().max()),
    }
    if hasattr(vision, "window_size"):  # Qwen2.5-VL
        order, windows = get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        indices["video_window_index"] = order
        indices["video_cu_window_seqlens"] = windows
        indices["video_max_window_seqlen"] = int(windows.diff().max())
    return indices
