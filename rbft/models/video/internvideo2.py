"""InternVideo2's video encoder as a classifier (Wang et al. 2024, arXiv 2403.15377), as a transformers model.

One transformer over the tokens of all tubelets together, with RMS norms (of queries and keys too) and LayerScale; then the head's input is
pooled from the tokens: by attention of their mean, as fine-tuned models have it, or of the class token and means, as in linear probing.
B clips, T tubelets, N tokens, D channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput

from rbft.models.video.layers import DropPath, PoolingAttention, SelfAttention, TubeletEmbedding, rising
from rbft.models.video.positions import sincos_3d


class InternVideo2Config(PreTrainedConfig):
    """Defaults: S/14 with 8 frames of 224 x 224, as published for Kinetics."""

    model_type = "internvideo2"

    image_size: int = 224
    patch_size: int = 14
    num_frames: int = 8
    tubelet_size: int = 1
    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    qk_norm: bool = True
    qkv_bias: bool = False
    layer_scale: float = 1e-5
    """What LayerScale begins with; 0: none."""
    separate_positions: bool = False
    """Position embeddings of place and of time, added, in place of one for each token."""
    pooling: Literal["attention", "cls_mean", "cls_frames", "cls_mean_attention", "cls_frames_attention"] = "attention"
    """The head's input: attention pooling; or the class token with the mean of all others ("mean"), or with the mean of each tubelet
    ("frames"), normed; or these, and attention pooling. MERGE_METHOD of the official code: proj, cls_avg1, cls_avgN, and with _proj."""
    pooling_norm: Literal["batch_plain", "batch", "layer"] = "batch_plain"
    """Of class token and means: batch norm without weights, or with, or layer norm (kaiming_BN, BN, LN)."""
    pooling_size: int = 768
    num_pooling_heads: int = 16
    has_extra_mlp: bool = False
    """Attentive probing has an MLP behind the pooling."""
    drop_path_rate: float = 0.0
    classifier_dropout: float = 0.0
    initializer_range: float = 0.02


class RMSNorm(nn.RMSNorm):
    """In the precision of its weight, which autocast leaves in float32."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class LayerScale(nn.Module):
    """A weight a channel of a branch, small at first (Touvron et al. 2021)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * self.weight


class MLP(nn.Module):
    def __init__(self, size: int, inner_size: int) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Linear(size, inner_size), nn.Linear(inner_size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(gelu(self.expand(x)))


class InternVideo2Layer(GradientCheckpointingLayer):
    def __init__(self, config: InternVideo2Config, drop_path: float) -> None:
        super().__init__()
        size = config.hidden_size
        norm = (lambda: RMSNorm(size)) if config.qk_norm else nn.Identity
        self.attention_norm, self.mlp_norm = RMSNorm(size), RMSNorm(size)
        self.attention = SelfAttention(config, bias=config.qkv_bias, norm=norm)
        self.mlp = MLP(size, config.intermediate_size)
        self.attention_scale, self.mlp_scale = (LayerScale(size) if config.layer_scale else nn.Identity() for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        tokens_BND = tokens_BND + self.drop_path(self.attention_scale(self.attention(self.attention_norm(tokens_BND))))
        return tokens_BND + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(tokens_BND))))


class AttentionPooling(nn.Module):
    """The mean of the tokens asks all of them; three norms of their own for query, keys and values."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(config.hidden_size) for _ in range(3))
        self.attention = PoolingAttention(config.hidden_size, config.pooling_size, config.num_pooling_heads)
        self.norm = nn.LayerNorm(config.pooling_size)
        self.extra_norm = nn.LayerNorm(config.pooling_size) if config.has_extra_mlp else None
        self.extra_mlp = MLP(config.pooling_size, 4 * config.pooling_size) if config.has_extra_mlp else None

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """[B, pooling size]."""
        pooled = self.attention(self.query_norm(tokens_BND.mean(1)), self.key_norm(tokens_BND), self.value_norm(tokens_BND))
        if self.extra_mlp is not None and self.extra_norm is not None:
            pooled = pooled + self.extra_mlp(self.extra_norm(pooled))
        return self.norm(pooled)


class ClassTokenPooling(nn.Module):
    """Class token and means of the others, normed, one after the other."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.is_by_frames = "frames" in config.pooling
        size = config.pooling_size if self.is_by_frames else config.hidden_size
        self.reduce = nn.Linear(config.hidden_size, size) if self.is_by_frames else None
        self.num_tubelets = config.num_frames // config.tubelet_size
        self.output_size = size * (1 + (self.num_tubelets if self.is_by_frames else 1))
        self.norm: nn.Module
        if config.pooling_norm == "layer":
            self.norm = nn.LayerNorm(size)
        else:
            is_plain = config.pooling_norm == "batch_plain"
            self.norm = nn.BatchNorm1d(size, affine=not is_plain, eps=1e-6 if is_plain else 1e-5)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """[B, output size]. The first token is the class token."""
        others = tokens_BND[:, 1:]
        means = others.unflatten(1, (self.num_tubelets, -1)).mean(2) if self.is_by_frames else others.mean(1, keepdim=True)
        parts = torch.cat([tokens_BND[:, :1], means], dim=1)
        if self.reduce is not None:
            parts = gelu(self.reduce(parts))
        if isinstance(self.norm, nn.BatchNorm1d):
            # Channels before parts: the order in which the official head takes them.
            return self.norm(parts.transpose(1, 2)).flatten(1)
        return self.norm(parts).flatten(1)


class InternVideo2PreTrainedModel(PreTrainedModel):
    config_class = InternVideo2Config
    base_model_prefix = "internvideo2"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVideo2Layer"]  # noqa: RUF012  # as transformers has it
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    no_weight_decay = ("class_token", "position_embeddings", "place_embeddings", "time_embeddings", "class_embedding")
    """Names of parameters that do not decay, as published."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A start from random weights, as published: what goes into the residual stream is smaller, the deeper the layer."""
        super()._init_weights(module)
        if isinstance(module, LayerScale):
            init.constant_(module.weight, self.config.layer_scale)
        elif isinstance(module, InternVideo2Model):
            std = self.config.initializer_range
            init.normal_(module.class_token, std=std)
            init.normal_(module.patch_embedding.weight, std=module.patch_embedding.in_features**-0.5)
            module.draw_positions()
            for depth, layer in enumerate(module.layers, 1):
                init.normal_(layer.attention.output.weight, std=std / (2 * depth) ** 0.5)
                init.normal_(layer.mlp.reduce.weight, std=std / (2 * depth) ** 0.5)
            if module.attention_pooling is not None and module.attention_pooling.extra_mlp is not None:
                init.zeros_(module.attention_pooling.extra_mlp.reduce.weight)


class InternVideo2Model(InternVideo2PreTrainedModel):
    """Clips to one vector each."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.num_tubelets, self.grid = config.num_frames // config.tubelet_size, config.image_size // config.patch_size
        num_places = self.grid**2
        tubelet = config.tubelet_size
        self.patch_embedding = TubeletEmbedding(size, config.patch_size, tubelet, tubelet, bias=True)
        self.class_token = nn.Parameter(torch.empty(1, 1, size))
        if config.separate_positions:
            self.place_embeddings = nn.Parameter(torch.empty(1, num_places, size))
            self.time_embeddings = nn.Parameter(torch.empty(1, self.num_tubelets, size))
            self.class_embedding = nn.Parameter(torch.empty(1, 1, size))
        else:
            self.position_embeddings = nn.Parameter(torch.empty(1, 1 + self.num_tubelets * num_places, size))
        rates = rising(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList(InternVideo2Layer(config, rate) for rate in rates)
        self.class_pooling = ClassTokenPooling(config) if config.pooling.startswith("cls") else None
        self.attention_pooling = AttentionPooling(config) if config.pooling.endswith("attention") else None
        sizes = [self.class_pooling.output_size] if self.class_pooling else []
        self.output_size = sum([*sizes, config.pooling_size] if self.attention_pooling else sizes)
        self.post_init()

    def draw_positions(self) -> None:
        """Positions as sines and cosines, which training changes."""
        size, num_tubelets = self.config.hidden_size, self.num_tubelets
        if self.config.separate_positions:
            init.copy_(self.place_embeddings, sincos_3d(size, 1, self.grid)[None])
            init.copy_(self.time_embeddings, sincos_3d(size, num_tubelets, 1)[None])
            init.zeros_(self.class_embedding)
        else:
            positions = torch.cat([torch.zeros(1, size), sincos_3d(size, num_tubelets, self.grid)])
            init.copy_(self.position_embeddings, positions[None])

    def _positions(self) -> torch.Tensor:
        """[1, 1 + T N, D], the class token's first."""
        if not self.config.separate_positions:
            return self.position_embeddings
        every = self.time_embeddings[:, :, None] + self.place_embeddings[:, None]
        return torch.cat([self.class_embedding, every.flatten(1, 2)], dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, frames, 3, height, width] to [B, output size]."""
        tokens_BND = self.patch_embedding(pixel_values.to(self.dtype)).flatten(1, 2)
        class_tokens = self.class_token.to(tokens_BND.dtype).expand(len(tokens_BND), -1, -1)
        tokens_BND = torch.cat([class_tokens, tokens_BND], dim=1) + self._positions()
        for layer in self.layers:
            tokens_BND = layer(tokens_BND)
        poolings = [pooling for pooling in (self.class_pooling, self.attention_pooling) if pooling is not None]
        return torch.cat([pooling(tokens_BND) for pooling in poolings], dim=1)


class InternVideo2ForVideoClassification(InternVideo2PreTrainedModel):
    """With a linear layer for the classes of `config.id2label`."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__(config)
        self.internvideo2 = InternVideo2Model(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.internvideo2.output_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits [B, number of labels] of clips [B, frames, 3, height, width]; with `labels` [B] the mean cross-entropy too."""
        logits = self.classifier(self.dropout(self.internvideo2(pixel_values)))
        return ImageClassifierOutput(loss=None if labels is None else cross_entropy(logits.float(), labels), logits=logits)
