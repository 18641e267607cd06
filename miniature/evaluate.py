"""How well a model of the miniature describes clips: greedy rationales, slot by slot, on held-out general clips and a development world."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from miniature import batches
from miniature.draw import render
from miniature.slots import score
from miniature.world import ClipPlan, Domain, sample_general, sample_target
from miniature.write import decode_mp4, encode_mp4
from rbft.models.patches import PatchLayout

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    from rbft.task import Task

DEVELOPMENT_WORLD = 900
"""Seeds from 900 are development worlds: the degradation is tuned on them, and no reported experiment runs on them."""


def held_out(domain: Domain, num_clips: int) -> list[ClipPlan]:
    """Plans of clips that no training sees."""
    if domain == "general":
        return [sample_general(DEVELOPMENT_WORLD, "held-out", index) for index in range(num_clips)]
    return [sample_target(DEVELOPMENT_WORLD, "test", index).plan for index in range(num_clips)]


@torch.no_grad()
def write_rationales(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, task: Task, plans: list[ClipPlan], batch_size: int = 64
) -> list[str]:
    """A greedy rationale for each clip, by Hugging Face's `generate`; pixels go through an mp4 and back."""
    conversations = batches.Conversations(task, processor)
    prompt = torch.tensor([conversations.prompt_ids(task.rationale_messages())])
    layout = PatchLayout.of(processor.video_processor)
    texts: list[str] = []
    for first in range(0, len(plans), batch_size):
        some = plans[first : first + batch_size]
        frames = np.stack([decode_mp4(encode_mp4(render(plan)[0])) for plan in some])
        input_ids = prompt.expand(len(some), -1)
        grid_thw, seconds = batches.grids(len(some))
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=(input_ids == processor.video_token_id).int() * 2,
            pixel_values_videos=batches.patches(frames, layout),
            video_grid_thw=grid_thw,
            second_per_grid_ts=seconds,
            do_sample=False,
            max_new_tokens=64,
        )
        texts += processor.tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
    return texts


def slot_scores(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, task: Task, domain: Domain, num_clips: int
) -> dict[str, float]:
    """Share of right slots by name, and "overall", over `num_clips` held-out clips of the domain."""
    plans = held_out(domain, num_clips)
    model.eval()
    scores = score(write_rationales(model, processor, task, plans), [plan.slots for plan in plans])
    model.train()
    return scores
