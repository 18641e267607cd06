"""The one place that turns a clip and a conversation into model input.

Training, generation, evaluation and serving all come through `ChatAdapter`, so that token ids, grid, 3-D positions,
`second_per_grid_ts` and pixel values are the same everywhere (a test holds that).

What it takes care of, because each goes wrong silently:
- `second_per_grid_ts` = 2 / fps comes from the clip's true sampled rate, not from a default of 24 fps, and is a number that
  bfloat16 holds, as vLLM casts it to the model's dtype;
- `mm_token_type_ids` is always carried, else M-RoPE falls back to 1-D positions;
- frames are already of their final size (`rbft.video.sampling.fit_size`), so the processor neither resizes nor samples again.

Shape legend: L tokens of a sample, T frames of H x W pixels, P patches of a video, D = 3 * temporal_patch * patch**2.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rbft.errors import ModelError
from rbft.models.patches import PatchLayout, patchify
from rbft.records import Clip, VideoSpec

if TYPE_CHECKING:
    from rbft.task import Message

IGNORE_INDEX = -100
"""torch.nn.functional.cross_entropy's default: positions that are not supervised."""


@dataclass(frozen=True)
class EncodedSample:
    """One conversation about one clip, as tensors on the CPU, unpadded."""

    input_ids_L: torch.Tensor
    """int64; the video placeholder is expanded to one token a merged patch."""
    labels_L: torch.Tensor
    """int64; the token itself where it is supervised (the answer and its end token), `IGNORE_INDEX` elsewhere."""
    mm_token_type_ids_L: torch.Tensor
    """int64; 2 at video tokens, 0 elsewhere."""
    frames_THWC: torch.Tensor
    """uint8, RGB; an even number of them. They are normalised and cut into patches where they are used (`rbft.models.patches`)."""
    grid_thw: torch.Tensor
    """int64 [3]: temporal, height and width of the grid in patches."""
    second_per_grid_ts: float
    """Seconds between temporal patches: 2 / fps, to the 8 bits of a bfloat16."""
    weight: float = 1.0
    """Of each supervised token in the loss."""

    @property
    def num_supervised_tokens(self) -> int:
        return int((self.labels_L != IGNORE_INDEX).sum())


_MAX_TOKENISED = 1024
"""Texts whose tokens an adapter remembers."""


class ChatAdapter:
    """Clips and messages to model input, for the model in `model_path`."""

    def __init__(self, model_path: str | Path, spec: VideoSpec) -> None:
        from transformers import AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(str(model_path))
        except (OSError, ValueError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{model_path}: no processor can be loaded from it ({first_line}); give a whole model folder") from None
        self.tokenizer: Any = self.processor.tokenizer
        self.spec = spec
        self.video_token_id: int = self.processor.video_token_id
        self.end_token_id: int = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        pad_token_id: int | None = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_id if pad_token_id is None else pad_token_id
        self.patches = PatchLayout.of(self.processor.video_processor)
        self.temporal_patch_size: int = self.patches.temporal_patch_size
        self._path = str(model_path)
        self._tokenised: dict[str, list[int]] = {}

    @functools.cached_property
    def vision_config(self) -> Any:
        """The model's `vision_config`: what positions and windows follow from."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self._path).vision_config

    @property
    def video_kwargs(self) -> dict[str, Any]:
        """What the Hugging Face video processor is told, by us and by vLLM: frames are final, leave them as they are."""
        size = {"shortest_edge": self.spec.min_pixels, "longest_edge": self.spec.max_pixels}
        return {"size": size, "do_resize": False, "cap_pixels_per_frame": False}

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation in the model's chat format, up to where the assistant begins; one unexpanded video placeholder."""
        return str(self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `prompt_text`, with the one video placeholder not yet expanded (what vLLM takes)."""
        return self._tokens(json.dumps(messages), lambda: self.prompt_text(messages))

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of the assistant's `answer` and its end token: what is supervised, and what a label's likelihood sums over."""
        return [*self._tokens(f"answer {answer}", lambda: answer), self.end_token_id]

    def _tokens(self, key: str, make_text: Callable[[], str]) -> list[int]:
        """Of the text that `key` stands for. Questions and labels come again with every video; texts that do not, such as rationales, are
        forgotten in time."""
        known = self._tokenised.get(key)
        if known is None:
            known = self.tokenizer(make_text(), add_special_tokens=False)["input_ids"]
            if len(self._tokenised) >= _MAX_TOKENISED:
                self._tokenised = {}
            self._tokenised[key] = known
        return list(known)

    def second_per_grid_ts(self, clip: Clip) -> float:
        """Seconds between temporal patches of `clip`, rounded to bfloat16 (by at most 0.2 %; 2.0 at 1 FPS stays 2.0).

        vLLM 0.32 casts all floats of its processor's output to the model's dtype (`InputProcessingContext._postprocess_output`), so that
        2.2222 becomes 2.2188 before positions are computed from it. A number that is rounded already is the same on every path.
        """
        return float(torch.tensor(self.temporal_patch_size / clip.fps).bfloat16())

    def video_metadata(self, clip: Clip) -> dict[str, Any]:
        """The clip as its own video: the sampled frames at their true rate (transformers' and vLLM's metadata keys)."""
        fps = self.temporal_patch_size / self.second_per_grid_ts(clip)
        return {
            "fps": fps,
            "total_num_frames": clip.num_frames,
            "frames_indices": list(range(clip.num_frames)),
            "duration": clip.num_frames / fps,
            "video_backend": clip.backend,
        }

    def encode(self, clip: Clip, messages: Sequence[Message], answer: str | None = None, weight: float = 1.0) -> EncodedSample:
        """The prompt about `clip`, followed by `answer` and the end token as supervised tokens, of that `weight`, if it is given."""
        frames_THWC = self.patches.whole_patches(torch.from_numpy(clip.frames_THWC))
        grid = self.patches.grid(frames_THWC)
        num_video_tokens = math.prod(grid) // self.patches.merge_size**2
        ids = self.prompt_ids(messages)
        if ids.count(self.video_token_id) != 1:
            raise ModelError("the chat template must give exactly one video placeholder a conversation; it gave another number")
        at = ids.index(self.video_token_id)
        prompt = ids[:at] + [self.video_token_id] * num_video_tokens + ids[at + 1 :]
        answer_ids = [] if answer is None else self.answer_ids(answer)
        input_ids_L = torch.tensor(prompt + answer_ids)
        labels_L = torch.tensor([IGNORE_INDEX] * len(prompt) + answer_ids)
        return EncodedSample(
            input_ids_L=input_ids_L,
            labels_L=labels_L,
            mm_token_type_ids_L=(input_ids_L == self.video_token_id).long() * 2,
            frames_THWC=frames_THWC,
            grid_thw=torch.tensor(grid),
            second_per_grid_ts=self.second_per_grid_ts(clip),
            weight=weight,
        )

    def pixel_values(self, samples: Sequence[EncodedSample]) -> torch.Tensor:
        """`pixel_values_videos` of all samples' clips, float32 [P, D], on the CPU."""
        frames_N = torch.cat([sample.frames_THWC.flatten() for sample in samples])
        return patchify(frames_N, [tuple(sample.grid_thw.tolist()) for sample in samples], self.patches)

    def collate(self, samples: Sequence[EncodedSample], padding_side: Literal["left", "right"] = "right") -> dict[str, torch.Tensor]:
        """Model keyword arguments for a batch of B samples, padded to the longest, and `labels` [B, L]; `token_weights` [B, L] if a sample
        has another weight than 1.

        Padded on the right for training, on the left for generation, which goes on where all rows end.
        """

        def pad(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=padding_side)

        batch = {
            "input_ids": pad([sample.input_ids_L for sample in samples], self.pad_token_id),
            "attention_mask": pad([torch.ones_like(sample.input_ids_L) for sample in samples]),
            "mm_token_type_ids": pad([sample.mm_token_type_ids_L for sample in samples]),
            "labels": pad([sample.labels_L for sample in samples], IGNORE_INDEX),
            "pixel_values_videos": self.pixel_values(samples),
            "video_grid_thw": torch.stack([sample.grid_thw for sample in samples]),
        }
        if "second_per_grid_ts" in self.processor.model_input_names:
            batch["second_per_grid_ts"] = torch.tensor([sample.second_per_grid_ts for sample in samples])
        if any(sample.weight != 1.0 for sample in samples):
            batch["token_weights"] = pad([torch.full_like(sample.labels_L, sample.weight, dtype=torch.float32) for sample in samples])
        return batch

    def prompt_inputs(self, samples: Sequence[EncodedSample], model: Any) -> dict[str, torch.Tensor]:
        """Keyword arguments of `model` for the prompts, on its device, padded on the left, so that all end where the answer begins."""
        batch = self.collate(samples, padding_side="left")
        del batch["labels"]
        pixels = batch["pixel_values_videos"].to(model.device, model.dtype)
        return {name: value.to(model.device) for name, value in batch.items()} | {"pixel_values_videos": pixels}

    def vllm_prompt(self, clip: Clip, messages: Sequence[Message]) -> dict[str, Any]:
        """The same conversation as vLLM's `TokensPrompt`."""
        metadata = self.video_metadata(clip) | {"do_sample_frames": False}
        return {
            "prompt_token_ids": self.prompt_ids(messages),
            "multi_modal_data": {"video": [(clip.frames_THWC, metadata)]},
        }

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated `token_ids`, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
