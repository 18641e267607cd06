"""3-D positions (M-RoPE) as the models were trained with them and as vLLM computes them.

transformers 5.19 lets the text after a video go on at `start + max(height, width)` of the merged grid. The reference implementation of
Qwen2-VL and Qwen2.5-VL, and vLLM, go on after the *largest* position of the video, its temporal ones included. At 1 FPS temporal
positions of Qwen2.5-VL are 4 apart, so any clip of more than a few seconds gets other text positions there, and label
log-likelihoods differ by up to 0.1. `use_reference_positions` gives a loaded model the reference's; without it, training and
serving would disagree silently.

Legend: B samples, L tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def use_reference_positions(model: Any) -> None:
    """Make the transformers model `model` (Qwen2-VL or Qwen2.5-VL) place text after a video as the reference implementation does."""
    # Qwen2-VL counts temporal patches; Qwen2.5-VL counts seconds times tokens_per_second.
    tokens_per_second = getattr(model.config.vision_config, "tokens_per_second", None)
    merge_size = model.config.vision_config.spatial_merge_size
    model.model.get_rope_index = functools.partial(rope_index, merge_size=merge_size, tokens_per_second=tokens_per_second)


def rope_index(
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    second_per_grid_ts: torch.Tensor | None = None,
    *,
    merge_size: int,
    tokens_per_second: float | None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [3, B, L] (temporal, height, width; int64) and, for decoding, [B, 1] largest position + 1 - number of tokens.

    Same call as transformers' `get_rope_index`. One video a sample; images are not used by this project and are refused.
    """
    if image_grid_thw is not None:
        raise NotImplementedError("rope_index places videos only")
    positions_3BL = torch.zeros(3, *input_ids.shape, dtype=torch.long, device=input_ids.device)
    deltas = []
    videos = iter(video_grid_thw.tolist() if video_grid_thw is not None else [])
    seconds = iter(second_per_grid_ts.tolist() if second_per_grid_ts is not None else [])
    for row in range(input_ids.shape[0]):
        kept = attention_mask[row].bool() if attention_mask is not None else torch.ones_like(input_ids[row], dtype=torch.bool)
        is_video = mm_token_type_ids[row][kept].cpu() == 2
        length = int(kept.sum())
        if not bool(is_video.any()):
            text = torch.arange(length).expand(3, -1)
            positions_3BL[:, row, kept] = text.to(input_ids.device)
            deltas.append(0)
            continue
        before = int(is_video.long().argmax())
        grid_t, grid_h, grid_w = next(videos)
        interval = 1.0 if tokens_per_second is None else tokens_per_second * next(seconds, 1.0)
        # In float64, as vLLM: what lies just below a whole number must not be rounded up to it before it is cut off.
        times = (torch.arange(grid_t, dtype=torch.float64) * interval).long()
        grid = torch.meshgrid(times, torch.arange(grid_h // merge_size), torch.arange(grid_w // merge_size), indexing="ij")
        video = torch.stack(grid).reshape(3, -1) + before
        after = torch.arange(length - before - video.shape[1]) + int(video.max()) + 1
        row_positions = torch.cat([torch.arange(before).expand(3, -1), video, after.expand(3, -1)], dim=1)
        positions_3BL[:, row, kept] = row_positions.to(input_ids.device)
        deltas.append(int(row_positions.max()) + 1 - length)
    return positions_3BL, torch.tensor(deltas, device=input_ids.device).unsqueeze(1)
