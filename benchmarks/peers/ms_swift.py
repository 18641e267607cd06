"""ms-swift's supervised fine-tuning: its pipeline, template, collator and trainer; only reading the data set is ours.

`variant` "padding_free" or "packing" asks for these modes, which it refuses without FlashAttention.
"""

from __future__ import annotations

from typing import Any

import torch
from swift.pipelines.train.sft import SwiftSft

from benchmarks.peers import hf_family
from benchmarks.peers.protocol import Request, Rounds, errors_told, load_samples, read_request


class Rows(hf_family.Samples):
    """What `template.encode` gives, a row a sample."""

    def __getitem__(self, index: Any) -> Any:
        if index == "lengths":
            return [len(sample.input_ids) for sample in self._samples]
        row = super().__getitem__(index)
        return row | {"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()}


class Pipeline(SwiftSft):
    """`SwiftSft` on rows that are there already."""

    def __init__(self, args: list[str], rounds: Rounds) -> None:
        super().__init__(args)
        self._rounds = rounds

    def _prepare_dataset(self) -> Any:
        request = self._rounds.request
        hf_family.use_our_positions(self.model, request)
        dataset: Any = Rows(request.model, load_samples(request.samples))
        if request.variant == "packing":
            from swift.dataset import PackingDataset

            dataset = PackingDataset(self.template, dataset, packing_length=self.args.packing_length)
        return [dataset, None]

    def train(self, trainer: Any) -> None:
        hf_family.train(trainer, self._rounds)


def arguments(request: Request) -> list[str]:
    common = hf_family.arguments(request) | {
        "model": request.model,
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "dataset": "none",
        "torch_dtype": "float32",
        "tuner_type": "full",
        "freeze_vit": False,
        "freeze_aligner": False,
        "freeze_llm": False,
        "vit_gradient_checkpointing": False,
        "attn_impl": "flash_attention_2" if request.variant and torch.cuda.is_available() else "sdpa",
        "group_by_length": request.is_grouped and request.variant != "packing",
        "train_dataloader_shuffle": request.is_grouped,
        "split_dataset_ratio": 0,
        "check_model": False,
        "max_length": max(len(sample.input_ids) for sample in load_samples(request.samples)) * request.micro_batch_size,
        "create_checkpoint_symlink": False,
        "add_version": False,
    }
    if request.variant:
        common[request.variant] = True
    for name in ("fp16", "bf16"):
        common[name] = False
    return [text for name, value in common.items() for text in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))]


def main() -> None:
    request = read_request()
    rounds = Rounds(request)
    with errors_told(rounds):
        Pipeline(arguments(request), rounds).run()


if __name__ == "__main__":
    main()
