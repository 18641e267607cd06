"""Training batches of the base model: clips to patches, conversations to token ids with a mask over the answer.

Patches are made from uint8 arrays, as the processor would be most of the step's time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from miniature.draw import FRAME_SIDE, NUM_FRAMES
from miniature.tokenizer import PERSONAS
from miniature.world import TITLES, Slots, caption, generic_abnormal_share, generic_label
from rbft.models.patches import PatchLayout, patchify

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLProcessor

    from rbft.task import Message, Task

PATCH, MERGE, TEMPORAL = 14, 2, 2
GRID_THW = (NUM_FRAMES // TEMPORAL, FRAME_SIDE // PATCH, FRAME_SIDE // PATCH)
NUM_VIDEO_TOKENS = GRID_THW[0] * GRID_THW[1] * GRID_THW[2] // MERGE**2
SECONDS_PER_GRID = 2.0
"""Two frames at one a second."""

QUESTION_SHARE = 0.5
"""A fifth did not teach the generic rule: two slots' interaction, learned from one word a sample."""
TITLE_SHARE = 0.1
"""Share of prompts with a title before them, which says nothing there."""


def patches(frames_BTHWC: NDArray[np.uint8], layout: PatchLayout) -> torch.Tensor:
    """`pixel_values_videos` of a batch of clips, float32 [batch x 144, 1176]."""
    return patchify(torch.from_numpy(np.ascontiguousarray(frames_BTHWC)).flatten(), [GRID_THW] * len(frames_BTHWC), layout)


@dataclass(frozen=True)
class Batch:
    """Token tensors of one step; padded on the right."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mm_token_type_ids: torch.Tensor
    supervised: torch.Tensor
    """bool, shape of `input_ids`: the tokens to be predicted, the answer and its <|im_end|>."""
    abnormal_share: torch.Tensor
    """float32 [batch]: how often the question is answered "abnormal"; NaN for a caption."""


@dataclass(frozen=True)
class Conversation:
    """What is asked about a clip, and what the answer is."""

    messages: list[Message]
    answer: str
    abnormal_share: float = math.nan
    """Of a question: the probability of "abnormal", which training takes as a soft target in place of the answer's first token."""


class Conversations:
    """Turns slots into prompts and answers, and those into token ids."""

    def __init__(self, task: Task, processor: Qwen2_5_VLProcessor) -> None:
        self.task = task
        self.processor = processor
        self.personas = [task.model_copy(update={"persona": persona}) for persona in PERSONAS]
        self._prompt_ids: dict[str, list[int]] = {}

    def draw(self, slots: Slots, rng: np.random.Generator) -> Conversation:
        """A caption, or for `QUESTION_SHARE` of the samples the question, answered as the general domain does."""
        context = None
        if rng.random() < TITLE_SHARE:
            wordings = [title for titles in TITLES.values() for title in titles]
            context = f"Title: {wordings[int(rng.integers(len(wordings)))]}"
        if rng.random() < QUESTION_SHARE:
            return Conversation(self.task.question_messages(context), generic_label(slots), generic_abnormal_share(slots))
        task = self.task if rng.random() < 0.5 else self.personas[int(rng.integers(len(self.personas)))]
        return Conversation(task.rationale_messages(context), caption(slots, rng))

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of the prompt up to the assistant's turn, the video's placeholder repeated for each of its tokens."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if text not in self._prompt_ids:
            expanded = text.replace(self.processor.video_token, self.processor.video_token * NUM_VIDEO_TOKENS)
            self._prompt_ids[text] = self.processor.tokenizer(expanded)["input_ids"]
        return self._prompt_ids[text]

    def collate(self, conversations: list[Conversation]) -> Batch:
        tokenizer = self.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        rows = [(self.prompt_ids(each.messages), [*tokenizer(each.answer)["input_ids"], end]) for each in conversations]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        supervised = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            input_ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            attention_mask[row, : len(prompt) + len(answer)] = 1
            supervised[row, len(prompt) : len(prompt) + len(answer)] = True
        is_video = input_ids == self.processor.video_token_id
        shares = torch.tensor([each.abnormal_share for each in conversations])
        return Batch(input_ids, attention_mask, is_video.int() * 2, supervised, shares)


def grids(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(`video_grid_thw`, `second_per_grid_ts`) of a batch of clips, one video each."""
    return torch.tensor([GRID_THW] * batch_size), torch.full((batch_size,), SECONDS_PER_GRID)
