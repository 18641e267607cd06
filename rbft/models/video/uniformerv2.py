"""UniFormerV2 (Li et al. 2022, arXiv 2211.09552) as a transformers model: a CLIP image transformer that learns about time.

    local blocks     before and after the attention of a layer: a temporal convolution of each place, at fewer channels (optional)
    layers           CLIP's: attention among the tokens of each frame by itself
    global blocks    after some layers: one token a clip gathers from all tokens of all frames, layer after layer

B clips, T frames (tubelets, where time is halved), N tokens a frame, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput

from rbft.models.video.layers import DropPath, PoolingAttention, SelfAttention, TubeletEmbedding, rising


class UniFormerV2Config(PreTrainedConfig):
    """Defaults: B/16 with 8 frames of 224 x 224, as published for Kinetics."""

    model_type = "uniformerv2"

    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 8
    """Told to those who sample clips; the weights are of any number."""
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    global_layers: list[int] | tuple[int, ...] = (8, 9, 10, 11)
    """Layers that a global block follows, from 0; RETURN_LIST of the official configurations."""
    has_local_blocks: bool = False
    """Not NO_LMHRA: off for Kinetics, on for Something-Something."""
    has_second_local_block: bool = True
    """DOUBLE_LMHRA: a local block after the attention too."""
    local_size: int = 512
    """Channels of local blocks: the hidden size / DW_REDUCTION (1.5)."""
    halves_time: bool = False
    """TEMPORAL_DOWNSAMPLE: tokens are of 3 frames, 2 apart."""
    frozen: bool = False
    """FROZEN: only global blocks and head learn, and the answer is of the global token alone."""
    global_dropout: float = 0.5
    classifier_dropout: float = 0.5
    drop_path_rate: float = 0.0
    global_drop_path_rate: float = 0.0
    initializer_range: float = 0.02


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class LocalBlock(nn.Module):
    """What happens at each place over three frames: batch norm, fewer channels, a convolution a channel along time, all channels."""

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(config.hidden_size)
        self.reduce = nn.Linear(config.hidden_size, config.local_size)
        self.over_time = nn.Conv1d(config.local_size, config.local_size, 3, padding=1, groups=config.local_size)
        self.expand = nn.Linear(config.local_size, config.hidden_size)

    def forward(self, places_BTND: torch.Tensor) -> torch.Tensor:
        normed = self.norm(places_BTND.flatten(0, 2)).view_as(places_BTND)
        reduced = pad(self.reduce(normed), (0, 0, 0, 0, 1, 1))
        before, here, after = self.over_time.weight.squeeze(1).unbind(-1)
        mixed = reduced[:, :-2] * before + reduced[:, 1:-1] * here + reduced[:, 2:] * after + self.over_time.bias
        return self.expand(mixed)


class UniFormerV2Layer(GradientCheckpointingLayer):
    def __init__(self, config: UniFormerV2Config, drop_path: float) -> None:
        super().__init__()
        self.local_before = LocalBlock(config) if config.has_local_blocks else None
        self.local_after = LocalBlock(config) if config.has_local_blocks and config.has_second_local_block else None
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attention = SelfAttention(config, bias=True)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            QuickGELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BTND: torch.Tensor) -> torch.Tensor:
        """The first token of each frame is its class token."""
        tokens_BTND = self._local(self.local_before, tokens_BTND)
        attended = self.attention(self.attention_norm(tokens_BTND).flatten(0, 1)).view_as(tokens_BTND)
        tokens_BTND = tokens_BTND + self.drop_path(attended)
        tokens_BTND = self._local(self.local_after, tokens_BTND)
        return tokens_BTND + self.drop_path(self.mlp(self.mlp_norm(tokens_BTND)))

    def _local(self, block: LocalBlock | None, tokens_BTND: torch.Tensor) -> torch.Tensor:
        if block is None:
            return tokens_BTND
        places = tokens_BTND[:, :, 1:]
        return torch.cat([tokens_BTND[:, :, :1], places + self.drop_path(block(places))], dim=2)


class GlobalBlock(GradientCheckpointingLayer):
    """The clip's token asks all tokens of all frames, told where they are by a 3 x 3 x 3 convolution a channel."""

    def __init__(self, config: UniFormerV2Config, drop_path: float) -> None:
        super().__init__()
        size = config.hidden_size
        self.grid = config.image_size // config.patch_size
        self.positions = nn.Conv3d(size, size, 3, padding=1, groups=size)
        self.query_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(size) for _ in range(3))
        self.attention = PoolingAttention(size, size, config.num_attention_heads)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.intermediate_size),
            QuickGELU(),
            nn.Dropout(config.global_dropout),
            nn.Linear(config.intermediate_size, size),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, clip_BD: torch.Tensor, tokens_BTND: torch.Tensor) -> torch.Tensor:
        places = tokens_BTND[:, :, 1:]
        volume_BDTHW = places.unflatten(2, (self.grid, self.grid)).permute(0, 4, 1, 2, 3)
        moved = places + self.positions(volume_BDTHW).permute(0, 2, 3, 4, 1).flatten(2, 3)
        tokens_BND = self.token_norm(torch.cat([tokens_BTND[:, :, :1], moved], dim=2)).flatten(1, 2)
        clip_BD = clip_BD + self.drop_path(self.attention(self.query_norm(clip_BD), tokens_BND, tokens_BND))
        return clip_BD + self.drop_path(self.mlp(self.mlp_norm(clip_BD)))


class UniFormerV2PreTrainedModel(PreTrainedModel):
    config_class = UniFormerV2Config
    base_model_prefix = "uniformerv2"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniFormerV2Layer", "GlobalBlock"]  # noqa: RUF012  # as transformers has it
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A start from random weights: local and global blocks begin as nothing, as published.

        All in the body's turn, which comes after its layers': of modules without weights of their own transformers skips the turn.
        """
        super()._init_weights(module)
        if isinstance(module, UniFormerV2Model):
            std = self.config.hidden_size**-0.5
            init.normal_(module.class_token, std=std)
            init.normal_(module.position_embeddings, std=std)
            init.zeros_(module.clip_token)
            if module.balance is not None:
                init.zeros_(module.balance)
            for part in module.modules():
                if isinstance(part, LocalBlock):
                    init.zeros_(part.expand.weight)
                elif isinstance(part, GlobalBlock):
                    init.zeros_(part.attention.output.weight)
                    init.zeros_(part.mlp[-1].weight)


class UniFormerV2Model(UniFormerV2PreTrainedModel):
    """Clips to one vector each."""

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__(config)
        size, num_places = config.hidden_size, (config.image_size // config.patch_size) ** 2
        timing = {"frames": 3, "stride": 2, "padding": 1} if config.halves_time else {}
        self.patch_embedding = TubeletEmbedding(size, config.patch_size, **timing, bias=False)
        self.class_token = nn.Parameter(torch.empty(size))
        self.position_embeddings = nn.Parameter(torch.empty(1 + num_places, size))
        self.embedding_norm = nn.LayerNorm(size)
        rates = rising(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList(UniFormerV2Layer(config, rate) for rate in rates)
        global_rates = rising(config.global_drop_path_rate, len(config.global_layers))
        self.global_blocks = nn.ModuleList(GlobalBlock(config, rate) for rate in global_rates)
        self.clip_token = nn.Parameter(torch.empty(size))
        self.balance = None if config.frozen else nn.Parameter(torch.empty(size))
        self.norm = nn.LayerNorm(size)
        if config.frozen:
            for part in (self.patch_embedding, self.embedding_norm, self.layers):
                part.requires_grad_(False)
            self.class_token.requires_grad_(False)
            self.position_embeddings.requires_grad_(False)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, T, 3, height, width] to [B, D]."""
        places_BTND = self.patch_embedding(pixel_values.to(self.dtype))
        class_tokens = self.class_token.to(places_BTND.dtype).expand(*places_BTND.shape[:2], 1, -1)
        tokens_BTND = self.embedding_norm(torch.cat([class_tokens, places_BTND], dim=2) + self.position_embeddings)
        clip_BD = self.clip_token.expand(len(tokens_BTND), -1)
        blocks = dict(zip(self.config.global_layers, self.global_blocks, strict=True))
        for number, layer in enumerate(self.layers):
            tokens_BTND = layer(tokens_BTND)
            if number in blocks:
                clip_BD = blocks[number](clip_BD, tokens_BTND)
        if self.balance is not None:
            share = self.balance.sigmoid()
            clip_BD = (1 - share) * clip_BD + share * tokens_BTND[:, :, 0].mean(1)
        return self.norm(clip_BD)


class UniFormerV2ForVideoClassification(UniFormerV2PreTrainedModel):
    """With a linear layer for the classes of `config.id2label`."""

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__(config)
        self.uniformerv2 = UniFormerV2Model(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Logits [B, number of labels] of clips [B, T, 3, height, width]; with `labels` [B] the mean cross-entropy too."""
        logits = self.classifier(self.dropout(self.uniformerv2(pixel_values)))
        return ImageClassifierOutput(loss=None if labels is None else cross_entropy(logits.float(), labels), logits=logits)
