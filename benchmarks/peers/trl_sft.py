"""TRL's SFTTrainer. Its own vision collator takes images only, and it refuses packing and padding-free batches of a vision data set, so
the collator is the Qwen scripts'."""

from __future__ import annotations

from functools import partial
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.peers import hf_family
from benchmarks.peers.protocol import Rounds, errors_told, load_samples, read_request


def main() -> None:
    request = read_request()
    rounds = Rounds(request)
    with errors_told(rounds):
        samples = load_samples(request.samples)
        rows = hf_family.Samples(request.model, samples)

        def take(batch: dict[str, Any]) -> dict[str, Any]:
            taken = [rows[index] for index in batch["index"]]
            return {"length": batch["length"]} | {name: [row[name] for row in taken] for name in taken[0]}

        # It takes data sets of this library only.
        dataset = Dataset.from_dict({"index": list(range(len(samples))), "length": [len(sample.input_ids) for sample in samples]})
        dataset.set_transform(take)
        order = "group_by_length" if request.is_grouped else "sequential"
        trainer = SFTTrainer(
            model=hf_family.load_model(request),
            args=SFTConfig(
                **hf_family.arguments(request),
                train_sampling_strategy=order,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=dataset,
            processing_class=rows.processor,
            data_collator=partial(hf_family.collate, pad_token_id=rows.processor.tokenizer.pad_token_id),
        )
        # Its chunked loss takes all positions where there is no Triton.
        hf_family.train(trainer, rounds, is_head_called=False)


if __name__ == "__main__":
    main()
