"""The names of weights in the officially published checkpoints, key by key, beside ours.

One line a weight: the official name and ours; three names of ours share one official weight, in thirds. `{i}` counts layers, `{j}`
global blocks. A weight keeps its order of elements; shapes differ where a convolution became a matrix (conv1, lmhra*.pos_embed.1) or
dimensions of size 1 went (temporal_cls_token).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rbft.models.video.internvideo2 import InternVideo2Config
from rbft.models.video.uniformerv2 import UniFormerV2Config

Keys = dict[str, tuple[str, ...]]
"""Official name -> our names."""

_UNIFORMERV2 = """
conv1.weight                                  patch_embedding.weight
class_embedding                               class_token
positional_embedding                          position_embeddings
ln_pre.weight                                 embedding_norm.weight
ln_pre.bias                                   embedding_norm.bias
transformer.temporal_cls_token                clip_token
transformer.proj.0.weight                     norm.weight
transformer.proj.0.bias                       norm.bias
"""
_UNIFORMERV2_BALANCE = """
transformer.balance                           balance
"""
_UNIFORMERV2_LAYER = """
transformer.resblocks.{i}.attn.in_proj_weight     layers.{i}.attention.qkv.weight
transformer.resblocks.{i}.attn.in_proj_bias       layers.{i}.attention.qkv.bias
transformer.resblocks.{i}.attn.out_proj.weight    layers.{i}.attention.output.weight
transformer.resblocks.{i}.attn.out_proj.bias      layers.{i}.attention.output.bias
transformer.resblocks.{i}.ln_1.weight             layers.{i}.attention_norm.weight
transformer.resblocks.{i}.ln_1.bias               layers.{i}.attention_norm.bias
transformer.resblocks.{i}.mlp.c_fc.weight         layers.{i}.mlp.0.weight
transformer.resblocks.{i}.mlp.c_fc.bias           layers.{i}.mlp.0.bias
transformer.resblocks.{i}.mlp.c_proj.weight       layers.{i}.mlp.2.weight
transformer.resblocks.{i}.mlp.c_proj.bias         layers.{i}.mlp.2.bias
transformer.resblocks.{i}.ln_2.weight             layers.{i}.mlp_norm.weight
transformer.resblocks.{i}.ln_2.bias               layers.{i}.mlp_norm.bias
"""
_UNIFORMERV2_LOCAL = """
transformer.resblocks.{i}.{theirs}.pos_embed.0.weight               layers.{i}.{ours}.norm.weight
transformer.resblocks.{i}.{theirs}.pos_embed.0.bias                 layers.{i}.{ours}.norm.bias
transformer.resblocks.{i}.{theirs}.pos_embed.0.running_mean         layers.{i}.{ours}.norm.running_mean
transformer.resblocks.{i}.{theirs}.pos_embed.0.running_var          layers.{i}.{ours}.norm.running_var
transformer.resblocks.{i}.{theirs}.pos_embed.0.num_batches_tracked  layers.{i}.{ours}.norm.num_batches_tracked
transformer.resblocks.{i}.{theirs}.pos_embed.1.weight               layers.{i}.{ours}.reduce.weight
transformer.resblocks.{i}.{theirs}.pos_embed.1.bias                 layers.{i}.{ours}.reduce.bias
transformer.resblocks.{i}.{theirs}.pos_embed.2.weight               layers.{i}.{ours}.over_time.weight
transformer.resblocks.{i}.{theirs}.pos_embed.2.bias                 layers.{i}.{ours}.over_time.bias
transformer.resblocks.{i}.{theirs}.pos_embed.3.weight               layers.{i}.{ours}.expand.weight
transformer.resblocks.{i}.{theirs}.pos_embed.3.bias                 layers.{i}.{ours}.expand.bias
"""
_UNIFORMERV2_GLOBAL = """
transformer.dpe.{j}.weight                global_blocks.{j}.positions.weight
transformer.dpe.{j}.bias                  global_blocks.{j}.positions.bias
transformer.dec.{j}.attn.in_proj_weight   global_blocks.{j}.attention.query.weight global_blocks.{j}.attention.key.weight \
global_blocks.{j}.attention.value.weight
transformer.dec.{j}.attn.in_proj_bias     global_blocks.{j}.attention.query.bias global_blocks.{j}.attention.key.bias \
global_blocks.{j}.attention.value.bias
transformer.dec.{j}.attn.out_proj.weight  global_blocks.{j}.attention.output.weight
transformer.dec.{j}.attn.out_proj.bias    global_blocks.{j}.attention.output.bias
transformer.dec.{j}.ln_1.weight           global_blocks.{j}.query_norm.weight
transformer.dec.{j}.ln_1.bias             global_blocks.{j}.query_norm.bias
transformer.dec.{j}.ln_3.weight           global_blocks.{j}.token_norm.weight
transformer.dec.{j}.ln_3.bias             global_blocks.{j}.token_norm.bias
transformer.dec.{j}.mlp.c_fc.weight       global_blocks.{j}.mlp.0.weight
transformer.dec.{j}.mlp.c_fc.bias         global_blocks.{j}.mlp.0.bias
transformer.dec.{j}.mlp.c_proj.weight     global_blocks.{j}.mlp.3.weight
transformer.dec.{j}.mlp.c_proj.bias       global_blocks.{j}.mlp.3.bias
transformer.dec.{j}.ln_2.weight           global_blocks.{j}.mlp_norm.weight
transformer.dec.{j}.ln_2.bias             global_blocks.{j}.mlp_norm.bias
"""
_UNIFORMERV2_HEAD = """
transformer.proj.2.weight  classifier.weight
transformer.proj.2.bias    classifier.bias
"""

_INTERNVIDEO2 = """
patch_embed.proj.weight  patch_embedding.weight
patch_embed.proj.bias    patch_embedding.bias
cls_token                class_token
"""
_INTERNVIDEO2_JOINT = """
pos_embed                position_embeddings
"""
_INTERNVIDEO2_SEPARATE = """
pos_embed_spatial        place_embeddings
pos_embed_temporal       time_embeddings
pos_embed_cls            class_embedding
"""
_INTERNVIDEO2_LAYER = """
blocks.{i}.norm1.weight      layers.{i}.attention_norm.weight
blocks.{i}.attn.qkv.weight   layers.{i}.attention.qkv.weight
blocks.{i}.attn.proj.weight  layers.{i}.attention.output.weight
blocks.{i}.attn.proj.bias    layers.{i}.attention.output.bias
blocks.{i}.norm2.weight      layers.{i}.mlp_norm.weight
blocks.{i}.mlp.fc1.weight    layers.{i}.mlp.expand.weight
blocks.{i}.mlp.fc1.bias      layers.{i}.mlp.expand.bias
blocks.{i}.mlp.fc2.weight    layers.{i}.mlp.reduce.weight
blocks.{i}.mlp.fc2.bias      layers.{i}.mlp.reduce.bias
"""
_INTERNVIDEO2_QK_NORM = """
blocks.{i}.attn.q_norm.weight  layers.{i}.attention.query_norm.weight
blocks.{i}.attn.k_norm.weight  layers.{i}.attention.key_norm.weight
"""
_INTERNVIDEO2_QKV_BIAS = """
blocks.{i}.attn.qkv.bias       layers.{i}.attention.qkv.bias
"""
_INTERNVIDEO2_SCALE = """
blocks.{i}.ls1.gamma  layers.{i}.attention_scale.weight
blocks.{i}.ls2.gamma  layers.{i}.mlp_scale.weight
"""
_INTERNVIDEO2_ATTENTION_POOLING = """
clip_projector.norm1_q.weight          attention_pooling.query_norm.weight
clip_projector.norm1_q.bias            attention_pooling.query_norm.bias
clip_projector.norm1_k.weight          attention_pooling.key_norm.weight
clip_projector.norm1_k.bias            attention_pooling.key_norm.bias
clip_projector.norm1_v.weight          attention_pooling.value_norm.weight
clip_projector.norm1_v.bias            attention_pooling.value_norm.bias
clip_projector.cross_attn.q.weight     attention_pooling.attention.query.weight
clip_projector.cross_attn.q_bias       attention_pooling.attention.query.bias
clip_projector.cross_attn.k.weight     attention_pooling.attention.key.weight
clip_projector.cross_attn.k_bias       attention_pooling.attention.key.bias
clip_projector.cross_attn.v.weight     attention_pooling.attention.value.weight
clip_projector.cross_attn.v_bias       attention_pooling.attention.value.bias
clip_projector.cross_attn.proj.weight  attention_pooling.attention.output.weight
clip_projector.cross_attn.proj.bias    attention_pooling.attention.output.bias
fc_norm.weight                         attention_pooling.norm.weight
fc_norm.bias                           attention_pooling.norm.bias
"""
_INTERNVIDEO2_EXTRA_MLP = """
extra_mlp.0.weight      attention_pooling.extra_norm.weight
extra_mlp.0.bias        attention_pooling.extra_norm.bias
extra_mlp.1.fc1.weight  attention_pooling.extra_mlp.expand.weight
extra_mlp.1.fc1.bias    attention_pooling.extra_mlp.expand.bias
extra_mlp.1.fc2.weight  attention_pooling.extra_mlp.reduce.weight
extra_mlp.1.fc2.bias    attention_pooling.extra_mlp.reduce.bias
"""
_INTERNVIDEO2_REDUCE = """
down.0.weight  class_pooling.reduce.weight
down.0.bias    class_pooling.reduce.bias
"""
_INTERNVIDEO2_POOLING_WEIGHTS = """
down_norm.weight  class_pooling.norm.weight
down_norm.bias    class_pooling.norm.bias
"""
_INTERNVIDEO2_POOLING_STATISTICS = """
down_norm.running_mean         class_pooling.norm.running_mean
down_norm.running_var          class_pooling.norm.running_var
down_norm.num_batches_tracked  class_pooling.norm.num_batches_tracked
"""
_INTERNVIDEO2_HEAD = """
head.weight  classifier.weight
head.bias    classifier.bias
"""
PRETRAINING_ONLY = ("clip_decoder.", "final_clip_decoder.", "mae_decoder.", "clip_pos_embed", "mae_pos_embed")
"""How the official names begin of what InternVideo2's pretraining has and its classifiers have not: dropped."""
POOLED_ALWAYS = ("clip_projector.", "fc_norm.")
"""The official class-token variants hold attention pooling even where nothing asks it: dropped there."""


def uniformerv2_keys(config: UniFormerV2Config) -> Keys:
    """Every weight of the official model that `config` describes."""
    found = _lines(_UNIFORMERV2 if config.frozen else _UNIFORMERV2 + _UNIFORMERV2_BALANCE)
    for i in range(config.num_hidden_layers):
        found |= _lines(_UNIFORMERV2_LAYER, i=i)
        if config.has_local_blocks:
            found |= _lines(_UNIFORMERV2_LOCAL, i=i, theirs="lmhra1", ours="local_before")
        if config.has_local_blocks and config.has_second_local_block:
            found |= _lines(_UNIFORMERV2_LOCAL, i=i, theirs="lmhra2", ours="local_after")
    for j in range(len(config.global_layers)):
        found |= _lines(_UNIFORMERV2_GLOBAL, j=j)
    return _in_body(found, "uniformerv2") | _lines(_UNIFORMERV2_HEAD)


def internvideo2_keys(config: InternVideo2Config) -> Keys:
    """Every weight of the official model that `config` describes."""
    found = _lines(_INTERNVIDEO2 + (_INTERNVIDEO2_SEPARATE if config.separate_positions else _INTERNVIDEO2_JOINT))
    layer = _INTERNVIDEO2_LAYER
    layer += _INTERNVIDEO2_QK_NORM if config.qk_norm else ""
    layer += _INTERNVIDEO2_QKV_BIAS if config.qkv_bias else ""
    layer += _INTERNVIDEO2_SCALE if config.layer_scale else ""
    for i in range(config.num_hidden_layers):
        found |= _lines(layer, i=i)
    if config.pooling.endswith("attention"):
        found |= _lines(_INTERNVIDEO2_ATTENTION_POOLING + (_INTERNVIDEO2_EXTRA_MLP if config.has_extra_mlp else ""))
    if config.pooling.startswith("cls"):
        found |= _lines(_INTERNVIDEO2_REDUCE if "frames" in config.pooling else "")
        found |= _lines(_INTERNVIDEO2_POOLING_WEIGHTS if config.pooling_norm != "batch_plain" else "")
        found |= _lines(_INTERNVIDEO2_POOLING_STATISTICS if config.pooling_norm != "layer" else "")
    return _in_body(found, "internvideo2") | _lines(_INTERNVIDEO2_HEAD)


def _lines(text: str, **numbers: object) -> Keys:
    return {line[0].format(**numbers): tuple(name.format(**numbers) for name in line[1:]) for line in _words(text.splitlines())}


def _words(lines: Iterable[str]) -> Iterator[list[str]]:
    return (line.split() for line in lines if line.strip())


def _in_body(keys: Keys, body: str) -> Keys:
    return {official: tuple(f"{body}.{name}" for name in ours) for official, ours in keys.items()}
