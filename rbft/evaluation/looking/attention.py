"""Attention from the label position to the video (paper, Figure 2; readings, 24).

The label position is the last one of the prompt: what is read there decides the answer's first token. While the model attends as it always
does, hooks on the last layers take that one position's query against all keys, so that nothing of L x L is ever held.

In a gradient map an attention counts as much as it speaks for the answer: the positive part of attention x gradient of the log-probability
of the answer's first token (Chefer et al. 2021, "Generic attention-model explainability"). The gradient by an attention is the inner
product of the gradient by its head's output with its value, so that no attention matrix is needed here either.

Shape legend: B prompts, L positions, H heads, K heads of keys and values, G = H / K, D head size, T/H/W the grid of video tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rbft.errors import ModelError
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.models.chat import ChatAdapter, EncodedSample
from rbft.records import Clip
from rbft.task import Message

_FAMILIES = ("qwen2_vl", "qwen2_5_vl")


class AttentionReader:
    """Reads the attention of `model`, Qwen2-VL or Qwen2.5-VL, on whatever device it is; its parameters get no gradients any more.

    Maps are means over the heads and over the last `num_layers` layers. Raises `ModelError` for another kind of model.
    """

    def __init__(self, model: Any, adapter: ChatAdapter, num_layers: int = 4) -> None:
        if model.config.model_type not in _FAMILIES:
            raise ModelError(f"attention is read of {' and '.join(_FAMILIES)} models; this is {model.config.model_type}")
        self._model = model.eval().requires_grad_(False)
        self._adapter = adapter
        self._layers = [layer.self_attn for layer in model.model.language_model.layers[-num_layers:]]
        if any(layer.sliding_window for layer in self._layers):
            raise ModelError("the model attends in sliding windows, and attention maps are of the whole prompt; use a model without")

    def read(self, asked: Sequence[tuple[Clip, Sequence[Message]]]) -> list[AttentionMap]:
        """The map of each clip and question, in one batch."""
        samples = [self._adapter.encode(clip, messages) for clip, messages in asked]
        inputs = self._adapter.prompt_inputs(samples, self._model)
        layers: list[torch.Tensor] = []

        def note(layer: Any, hidden_BLC: torch.Tensor, rotations: _Rotations) -> None:
            layers.append(_attention(layer, hidden_BLC, rotations, inputs["attention_mask"]).flatten(1, 2).mean(dim=1))

        with torch.inference_mode(), _watched(self._layers, note):
            self._model.model(**inputs, use_cache=False)
        return self._maps(samples, torch.stack(layers).mean(dim=0))

    def read_gradient(self, asked: Sequence[tuple[Clip, Sequence[Message], str]]) -> list[AttentionMap]:
        """The map of what speaks for the answer given with each clip and question, in one batch."""
        samples = [self._adapter.encode(clip, messages) for clip, messages, _ in asked]
        first_tokens = torch.tensor([self._adapter.answer_ids(answer)[0] for _, _, answer in asked], device=self._model.device)
        inputs = self._adapter.prompt_inputs(samples, self._model)
        attentions: list[torch.Tensor] = []
        values: list[torch.Tensor] = []

        def note(layer: Any, hidden_BLC: torch.Tensor, rotations: _Rotations) -> None:
            with torch.no_grad():
                attentions.append(_attention(layer, hidden_BLC, rotations, inputs["attention_mask"]))
                values.append(layer.v_proj(hidden_BLC).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2))

        with torch.enable_grad(), _watched(self._layers, note), _leaves(self._layers) as outputs:
            hidden_BLC = self._model.model(**inputs, use_cache=False).last_hidden_state
            logprobs_BV = self._model.lm_head(hidden_BLC[:, -1]).float().log_softmax(dim=-1)
            logprobs_BV.gather(1, first_tokens[:, None]).sum().backward()
        layers = []
        for layer, attention_BKGL, value_BKLD, output in zip(self._layers, attentions, values, outputs, strict=True):
            assert output.grad is not None
            gradient_BKGD = output.grad[:, -1].float().unflatten(-1, (value_BKLD.shape[1], -1, layer.head_dim))
            effect_BKGL = gradient_BKGD @ value_BKLD.float().transpose(-1, -2)
            layers.append((attention_BKGL * effect_BKGL).clamp(min=0).flatten(1, 2).mean(dim=1))
        mean_BL = torch.stack(layers).mean(dim=0)
        total_B1 = mean_BL.sum(dim=1, keepdim=True)
        return self._maps(samples, mean_BL / total_B1.where(total_B1 > 0, 1.0))

    def _maps(self, samples: Sequence[EncodedSample], shares_BL: torch.Tensor) -> list[AttentionMap]:
        merge = self._adapter.patches.merge_size
        maps = []
        for sample, shares_L in zip(samples, shares_BL.float().cpu(), strict=True):
            shares_L = shares_L[-len(sample.input_ids_L) :]  # padded on the left
            time, height, width = sample.grid_thw.tolist()
            video = shares_L[sample.input_ids_L == self._adapter.video_token_id]
            maps.append(AttentionMap(shares_L.numpy(), video.reshape(time, height // merge, width // merge).numpy()))
        return maps


_Rotations = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the rotary positions, [B, L, D] each."""


def _attention(layer: Any, hidden_BLC: torch.Tensor, rotations: _Rotations, mask_BL: torch.Tensor) -> torch.Tensor:
    """float32 [B, K, G, L]: what the last position gives to each, as the eager attention of transformers computes it."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb

    cos_BLD, sin_BLD = rotations
    last_BHD, key_BKLD = (
        projection(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        for projection, x in ((layer.q_proj, hidden_BLC[:, -1:]), (layer.k_proj, hidden_BLC))
    )
    query, _ = apply_rotary_pos_emb(last_BHD, last_BHD, cos_BLD[:, -1:], sin_BLD[:, -1:])
    key_BKLD, _ = apply_rotary_pos_emb(key_BKLD, key_BKLD, cos_BLD, sin_BLD)
    query_BKGD = query.squeeze(2).unflatten(1, (key_BKLD.shape[1], -1))
    scores_BKGL = (query_BKGD @ key_BKLD.transpose(-1, -2)).float() * layer.scaling
    return scores_BKGL.masked_fill(mask_BL[:, None, None] == 0, -torch.inf).softmax(dim=-1)


@contextlib.contextmanager
def _watched(layers: Sequence[Any], note: Callable[[Any, torch.Tensor, _Rotations], None]) -> Iterator[None]:
    """In the block, `note` is called with each layer, before it runs, its input and its rotations."""

    def hook(layer: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        note(layer, kwargs["hidden_states"], kwargs["position_embeddings"])

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _leaves(layers: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    """In the block, the heads' outputs [B, L, H * D] of each layer are put in the list as they come, and keep their gradients."""
    outputs: list[torch.Tensor] = []

    def hook(_projection: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        # The graph begins at the first layer: nothing before it has parameters that want gradients.
        output = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        output.retain_grad()
        outputs.append(output)
        return (output,)

    handles = [layer.o_proj.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
