"""transformers' Trainer with a padding collator, as the Qwen fine-tuning scripts use it."""

from __future__ import annotations

from functools import partial

from transformers import Trainer, TrainingArguments

from benchmarks.peers import hf_family
from benchmarks.peers.protocol import Rounds, errors_told, load_samples, read_request


def main() -> None:
    request = read_request()
    rounds = Rounds(request)
    with errors_told(rounds):
        dataset = hf_family.Samples(request.model, load_samples(request.samples))
        order = "group_by_length" if request.is_grouped else "sequential"
        trainer = Trainer(
            model=hf_family.load_model(request),
            args=TrainingArguments(**hf_family.arguments(request), train_sampling_strategy=order),
            train_dataset=dataset,
            data_collator=partial(hf_family.collate, pad_token_id=dataset.processor.tokenizer.pad_token_id),
        )
        hf_family.train(trainer, rounds)


if __name__ == "__main__":
    main()
