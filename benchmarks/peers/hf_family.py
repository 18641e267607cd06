"""What the peers that are built on transformers' Trainer have in common: the samples as a data set, and rounds as a callback."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback

from benchmarks.peers.protocol import Request, Rounds, Sample


class Samples(torch.utils.data.Dataset):
    """From frames and token ids to what the model takes, by the model's own video processor, as these peers do it: a sample at a time."""

    def __init__(self, model: str, samples: list[Sample]) -> None:
        self._samples = samples
        self.processor = AutoProcessor.from_pretrained(model)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        input_ids = torch.tensor(sample.input_ids)
        return {
            "input_ids": input_ids,
            "labels": torch.tensor(sample.labels),
            "mm_token_type_ids": (input_ids == self.processor.video_token_id).long() * 2,
            "second_per_grid_ts": [sample.second_per_grid_ts],
            **self.pixels(sample),
        }

    def pixels(self, sample: Sample) -> dict[str, torch.Tensor]:
        features = self.processor.video_processor(videos=[sample.frames_TCHW], do_sample_frames=False, do_resize=False, return_tensors="pt")
        return {name: features[name] for name in ("pixel_values_videos", "video_grid_thw")}


def collate(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """As `DataCollatorForSupervisedDataset` of the Qwen fine-tuning scripts: padded to the longest of the micro-batch."""

    def pad(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    input_ids = pad("input_ids", pad_token_id)
    return {
        "input_ids": input_ids,
        "labels": pad("labels", -100),
        "mm_token_type_ids": pad("mm_token_type_ids", 0),
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        "pixel_values_videos": torch.cat([row["pixel_values_videos"] for row in rows]),
        "video_grid_thw": torch.cat([row["video_grid_thw"] for row in rows]),
        "second_per_grid_ts": torch.tensor([seconds for row in rows for seconds in row["second_per_grid_ts"]]),
    }


def load_model(request: Request) -> Any:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(request.model, dtype=torch.float32, attn_implementation="sdpa")
    use_our_positions(model, request)
    return model


def arguments(request: Request) -> dict[str, Any]:
    """Of transformers' TrainingArguments, for every peer: AdamW without decay, cosine without warm-up, clipping at 1, fp32."""
    return {
        "output_dir": request.folder,
        "per_device_train_batch_size": request.micro_batch_size,
        "gradient_accumulation_steps": request.accumulation_steps,
        "num_train_epochs": request.num_rounds,
        "learning_rate": request.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "fp16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_num_workers": request.num_data_workers,
        "dataloader_persistent_workers": request.num_data_workers > 0,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": 0,
    }


class RoundsCallback(TrainerCallback):
    """A round is an epoch; between two the trainer waits where it has just taken a step."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rounds.ready(**versions())
        control.should_training_stop = not self._rounds.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._rounds.request.steps_per_round == 0:
            self._rounds.end()
            if not self._rounds.begin():
                control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._rounds.add_loss(state.global_step, float(logs["loss"]))


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "accelerate", "trl", "ms-swift", "llamafactory"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def use_our_positions(model: Any, request: Request) -> None:
    """transformers places the text after a video elsewhere than the reference implementation and vLLM do (`rbft.models.positions`):
    another loss. Timed rounds leave each peer as it is; where losses are compared, all have the reference's."""
    if request.is_grouped:
        return
    source = Path(__file__).resolve().parents[2] / "rbft/models/positions.py"
    specification = importlib.util.spec_from_file_location("positions", source)  # by its path: rbft's other needs are not installed here
    assert specification is not None and specification.loader is not None
    positions = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(positions)
    theirs = model.model.get_rope_index
    positions.use_reference_positions(model)
    place = model.model.get_rope_index

    @functools.wraps(theirs)  # LLaMA-Factory looks at its parameters
    def with_lists(*args: Any, second_per_grid_ts: Any = None, **named: Any) -> Any:
        return place(*args, second_per_grid_ts=None if second_per_grid_ts is None else torch.as_tensor(second_per_grid_ts), **named)

    model.model.get_rope_index = with_lists


def train(trainer: Any, rounds: Rounds, is_head_called: bool = True) -> None:
    trainer.add_callback(RoundsCallback(rounds))
    rounds.watch(trainer.model, is_head_called)
    trainer.train()
    rounds.finish()
