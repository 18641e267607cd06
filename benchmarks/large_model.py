"""Random models that are bound by their arithmetic, as real ones are, with the miniature's tokenizer, processors and vision tower."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbft.records import Clip
    from rbft.task import Message

ROOT = Path(__file__).resolve().parent.parent
_SURE = 12.0
"""Logit of what the model shall say."""


def write_large_model(
    folder: Path, hidden_size: int = 768, num_layers: int = 12, num_heads: int = 24, num_key_value_heads: int = 8
) -> Path:
    """The folder, with such a model in it: of a hundred million parameters, unless told otherwise."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shutil.copytree(ROOT / "miniature/model", folder)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden_size, 3 * hidden_size, num_layers
    text.layer_types = ["full_attention"] * num_layers
    text.num_attention_heads, text.num_key_value_heads, text.max_window_layers = num_heads, num_key_value_heads, num_layers
    vision.out_hidden_size = hidden_size
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    print(f"large: a random model of {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f} million parameters", flush=True)
    model.save_pretrained(folder)
    return folder


def teach_to_answer(folder: Path, clips: Sequence[Clip], question: Sequence[Message], labels: Sequence[str]) -> None:
    """Set the head of the model in `folder` so that about `clips` it answers `question` with a label and ends, as a trained model
    does: labels are likely where the prompt ends and nowhere else, the end token where they end."""
    import torch

    from rbft.models.chat import ChatAdapter
    from rbft.models.load import load_model
    from rbft.records import VideoSpec

    adapter = ChatAdapter(folder, VideoSpec())
    model = load_model(folder, "float32").eval()
    answers = {label: adapter.answer_ids(label) for label in labels}
    before, after = [], []
    with torch.inference_mode():
        for clip in clips:
            for label, tokens in answers.items():
                batch = adapter.collate([adapter.encode(clip, question, label)])
                del batch["labels"]
                states_LH = model.model(**batch).last_hidden_state[0]
                before.append(states_LH[-len(tokens) - 1])
                after.append(states_LH[-2])
        states_SH, is_before_S = torch.stack(before + after), torch.tensor([1.0] * len(before) + [0.0] * len(after))
        solve_HS = torch.linalg.pinv(states_SH, rtol=1e-4)
        # A head of its own: the miniature's is its token embedding.
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        head = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        for number, tokens in enumerate(answers.values()):
            head[tokens[0]] = solve_HS @ is_before_S * (_SURE - 0.5 * number)
        head[adapter.end_token_id] = solve_HS @ (1 - is_before_S) * _SURE
    model.save_pretrained(folder)
