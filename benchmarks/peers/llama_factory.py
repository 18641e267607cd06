"""LLaMA-Factory's supervised fine-tuning: its model loading, collator and trainer; only reading the data set is ours.

Its collator calls the video processor itself, on the clips of a micro-batch: so it gets the frames.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch

if importlib.util.find_spec("torchaudio") is None:
    # Wanted at import and used for sound alone. Its package is a CUDA build, which does not load beside a CPU build of torch.
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from benchmarks.peers import hf_family
from benchmarks.peers.protocol import Rounds, Sample, errors_told, load_samples, read_request


class Rows(torch.utils.data.Dataset):
    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        return {
            "input_ids": sample.input_ids,
            "attention_mask": [1] * len(sample.input_ids),
            "labels": sample.labels,
            "images": None,
            "videos": [sample],
            "audios": None,
        }


def main() -> None:
    request = read_request()
    rounds = Rounds(request)
    with errors_told(rounds):
        common = hf_family.arguments(request) | {
            "model_name_or_path": request.model,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "freeze_vision_tower": False,
            "freeze_multi_modal_projector": False,
            "template": "qwen2_vl",
            "dataset": "none",
            "flash_attn": "sdpa",
            "disable_gradient_checkpointing": True,
            "infer_dtype": "float32",
            "train_sampling_strategy": "group_by_length" if request.is_grouped else "sequential",
            "disable_shuffling": not request.is_grouped,
        }
        common.pop("gradient_checkpointing")
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(common)
        tokenizer_module = load_tokenizer(model_args)
        tokenizer, processor = tokenizer_module["tokenizer"], tokenizer_module["processor"]
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        model = load_model(tokenizer, model_args, finetuning_args, is_trainable=True)
        hf_family.use_our_positions(model, request)
        dataset = hf_family.Samples(request.model, [])

        def get_mm_inputs(images: Any, videos: list[Sample], *others: Any, **named: Any) -> dict[str, Any]:
            rows = [dataset.pixels(sample) for sample in videos]
            return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} | {
                "second_per_grid_ts": [sample.second_per_grid_ts for sample in videos]
            }

        template.mm_plugin.get_mm_inputs = get_mm_inputs
        collator = SFTDataCollatorWith4DAttentionMask(
            template=template,
            model=model,
            pad_to_multiple_of=8,  # as `llamafactory.train.sft.workflow` has it
            label_pad_token_id=-100,
            block_diag_attn=model_args.block_diag_attn,
            neat_packing=data_args.neat_packing,
            attn_implementation="sdpa",
            compute_dtype=model_args.compute_dtype,
            tokenizer=tokenizer,
            processor=processor,
        )
        trainer = CustomSeq2SeqTrainer(
            model=model,
            args=training_args,
            finetuning_args=finetuning_args,
            data_collator=collator,
            gen_kwargs={},
            train_dataset=Rows(load_samples(request.samples)),
            tokenizer=tokenizer,
            processor=processor,
        )
        hf_family.train(trainer, rounds)


if __name__ == "__main__":
    main()
