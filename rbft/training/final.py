"""What a finished stage leaves: `final/`, a whole model folder with its task card and model card, and with LoRA `adapter/` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from rbft import artifacts
from rbft.models.adapters import merge_adapter, save_adapter
from rbft.models.card import MODEL_CARD, model_card
from rbft.models.chat import ChatAdapter
from rbft.models.load import make_card, save_model
from rbft.training.deepspeed_engine import whole_state_dict
from rbft.training.stage import StageSpec
from rbft.training.validation import best_scores


def write_final(engine: Any, adapter: ChatAdapter, spec: StageSpec, final: Path) -> None:
    """Write and publish `final`, from the weights in `engine`; every rank calls this."""
    with_lora = spec.training.lora is not None
    weights = whole_state_dict(engine, adapters_only=with_lora)
    if weights is not None:
        # How many workers there were at the end changes rounding only, and is no part of the fingerprint.
        workers = {"num_workers": dist.get_world_size(), "micro_batch_size": spec.training.micro_batch_size}
        lineage, model = spec.lineage | workers, engine.module.model
        card = make_card(spec.task, spec.video.spec(), spec.lineage | {"fingerprint": spec.fingerprint})
        readme = model_card(spec.task, spec.video.spec(), card["lineage"], best_scores(spec))
        if with_lora:
            beside = final.with_name("adapter")
            save_adapter(model, weights, spec.model.path, beside, card, readme)
            base = spec.lineage.get("base") or artifacts.model_fingerprint(spec.model.path)
            artifacts.publish(beside.resolve(), str(beside), spec.fingerprint, lineage | {"base": base})
            # From the files, as `rbft export` does: base weights have not changed, and may be held here in parts or in 4 bits.
            model = merge_adapter(beside, spec.model.path)
            weights = dict(model.named_parameters())
        save_model(model, weights, adapter.processor, final, card)
        (final / MODEL_CARD).write_text(readme, encoding="utf-8")
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, lineage)
    dist.barrier()
