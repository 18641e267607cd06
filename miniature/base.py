"""Trains the base model: the vision tower on the slots, then the whole on captions. `python -m miniature.base`; about an hour on two cores.

Captioning alone does not teach motion in this time (README); the tower learns it in minutes when it is asked for the slots directly,
through linear heads that are thrown away. Then the language model learns to say what the tower sees.

The run is resumable: state is saved every few hundred steps, and each step draws its batch from a generator of its own, so a resumed run
sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from miniature import batches
from miniature.architecture import model_config
from miniature.cache import SHARD_CLIPS, general_clips
from miniature.evaluate import slot_scores
from miniature.slots import SLOT_NAMES
from miniature.tokenizer import make_processor, train_tokenizer
from miniature.world import ACTIONS, COLOURS, SCENES, SUBJECTS, derived_seed, sample_general
from rbft.models.attention import use_segments
from rbft.models.patches import PatchLayout

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    from rbft.task import Task

ROOT = Path(__file__).resolve().parent.parent
MODEL_FOLDER = Path(__file__).resolve().parent / "model"
TASK_FILE = ROOT / "configs/tasks/miniature.yaml"
_SLOT_VALUES = dict(zip(SLOT_NAMES, (SUBJECTS, COLOURS, ACTIONS, SCENES), strict=True))


@dataclass(frozen=True)
class BaseConfig:
    seed: int = 0
    num_clips: int = 20_000
    tower_steps: int = 800
    tower_batch: int = 32
    tower_rate: float = 1e-3
    caption_steps: int = 5000
    caption_batch: int = 16
    slot_weight: float = 0.5
    """Weight of the slots' own loss beside the captions': without it the tower forgets subjects faster than captions teach them."""
    caption_rate: float = 7e-4
    """1e-3 was seen to be unstable early on."""
    warmup_steps: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    look_every: int = 1000
    look_clips: int = 96
    final_clips: int = 512
    save_every: int = 250
    num_threads: int = 2


def load_task() -> Task:
    import yaml

    from rbft.task import Task

    return Task(**yaml.safe_load(TASK_FILE.read_text()))


class Clips:
    """The rendered training clips and their slots, by number."""

    def __init__(self, shards: list[NDArray[np.uint8]], config: BaseConfig) -> None:
        self.shards = shards
        self.num_clips = config.num_clips
        self.slots = [sample_general(config.seed, "train", index).slots for index in range(config.num_clips)]

    def frames(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [len(numbers), 8, 84, 84, 3]."""
        return np.stack([self.shards[n // SHARD_CLIPS][n % SHARD_CLIPS] for n in numbers])


def rate_at(step: int, num_steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _optimiser(modules: list[nn.Module], config: BaseConfig) -> torch.optim.AdamW:
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), foreach=True)


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


class Progress:
    """Lines on the terminal: step, loss over the last steps, seconds a step, time left."""

    def __init__(self, stage: str, first: int, num_steps: int, every: int = 25) -> None:
        self.stage, self.num_steps, self.every = stage, num_steps, every
        self.started, self.first, self.losses = time.monotonic(), first, []  # type: float, int, list[float]

    def step(self, step: int, loss: float, **more: float) -> None:
        self.losses.append(loss)
        if (step + 1) % self.every:
            return
        step_s = (time.monotonic() - self.started) / (step + 1 - self.first)
        rest = "".join(f"  {name} {value:.3f}" for name, value in more.items())
        left_min = step_s * (self.num_steps - step - 1) / 60
        mean = sum(self.losses[-self.every :]) / len(self.losses[-self.every :])
        print(f"{self.stage} {step + 1}/{self.num_steps}  loss {mean:.4f}{rest}  {step_s:.2f} s/step  {left_min:.0f} min left", flush=True)


class SlotHeads(nn.Module):
    """A linear head a slot over mean and max of the tower's merged tokens; teaches the tower, and is thrown away."""

    def __init__(self, clips: Clips, hidden_size: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * hidden_size, len(values)) for name, values in _SLOT_VALUES.items()})
        self.truth = {name: torch.tensor([values.index(getattr(s, name)) for s in clips.slots]) for name, values in _SLOT_VALUES.items()}

    def forward(self, tokens: torch.Tensor, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean cross-entropy over the slots of clips `numbers`, and the share of right answers by slot."""
        tokens = tokens.view(len(numbers), batches.NUM_VIDEO_TOKENS, -1)
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1)
        logits = {name: head(pooled) for name, head in self.heads.items()}
        loss = torch.stack([F.cross_entropy(logits[name], self.truth[name][numbers]) for name in SLOT_NAMES]).mean()
        return loss, {name: (logits[name].argmax(-1) == self.truth[name][numbers]).float().mean().item() for name in SLOT_NAMES}


def train_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    clips: Clips,
    heads: SlotHeads,
    config: BaseConfig,
    work: Path,
) -> None:
    """Train the vision tower on the slots."""
    done, state_path = work / "tower.pt", work / "tower-state.pt"
    visual = model.model.visual
    if done.exists():
        state = torch.load(done, weights_only=True)
        visual.load_state_dict(state["visual"])
        heads.load_state_dict(state["heads"])
        return
    optimiser = _optimiser([visual, heads], config)
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        visual.load_state_dict(state["visual"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    layout = PatchLayout.of(processor.video_processor)
    grid_thw, _ = batches.grids(config.tower_batch)
    progress = Progress("tower", first, config.tower_steps)
    right = dict.fromkeys(SLOT_NAMES, 0.0)
    for step in range(first, config.tower_steps):
        rng = np.random.default_rng(derived_seed(config.seed, "base/tower", step))
        numbers = rng.integers(clips.num_clips, size=config.tower_batch)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, config.tower_steps, 50, config.tower_rate)
        tokens = visual(batches.patches(clips.frames(numbers), layout), grid_thw=grid_thw).pooler_output
        loss, now = heads(tokens, numbers)
        loss.backward()
        nn.utils.clip_grad_norm_([*visual.parameters(), *heads.parameters()], config.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        right = {name: 0.95 * right[name] + 0.05 * now[name] if step > first else now[name] for name in SLOT_NAMES}
        progress.step(step, loss.item(), **right)
        if (step + 1) % config.save_every == 0:
            state = {"visual": visual.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            _save(state_path, state)
    _save(done, {"visual": visual.state_dict(), "heads": heads.state_dict()})


def caption_loss(
    model: Qwen2_5_VLForConditionalGeneration, pixels: torch.Tensor, batch: batches.Batch, label_tokens: tuple[int, int]
) -> torch.Tensor:
    """Cross-entropy: the mean over the captions' tokens plus the mean over labels, each with its end; logits only where they count.

    A label's target is the share of either label (`label_tokens`: "normal", "abnormal"), which teaches more than a label drawn by it.
    """
    grid_thw, seconds = batches.grids(len(batch.input_ids))
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_token_type_ids=batch.mm_token_type_ids,
        pixel_values_videos=pixels,
        video_grid_thw=grid_thw,
        second_per_grid_ts=seconds,
        use_cache=False,
    ).last_hidden_state
    supervised = batch.supervised[:, 1:]
    logprobs = F.log_softmax(model.lm_head(hidden[:, :-1][supervised]), dim=-1)
    losses = F.nll_loss(logprobs, batch.input_ids[:, 1:][supervised], reduction="none")
    lengths = supervised.sum(1)
    asked = ~batch.abnormal_share.isnan()
    first = (lengths.cumsum(0) - lengths)[asked]  # the label itself; the end token follows
    share = batch.abnormal_share[asked]
    normal, abnormal = label_tokens
    losses = losses.index_copy(0, first, -(1 - share) * logprobs[first, normal] - share * logprobs[first, abnormal])
    # A label is two tokens and a caption some forty: by tokens alone the label would be a hundredth of the loss, and was not learned.
    is_label = asked.repeat_interleave(lengths)
    captions, labels = losses[~is_label], losses[is_label]
    return captions.sum() / max(1, len(captions)) + labels.sum() / max(1, int(asked.sum()))


def label_tokens(processor: Qwen2_5_VLProcessor, labels: Sequence[str]) -> tuple[int, int]:
    """The one token of each of the two `labels`."""
    ids = [processor.tokenizer(label)["input_ids"] for label in labels]
    if [len(each) for each in ids] != [1, 1]:
        raise ValueError(f"the labels {list(labels)} must be one token each, are {ids}; make the tokenizer again")
    return ids[0][0], ids[1][0]


def train_captions(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    clips: Clips,
    heads: SlotHeads,
    task: Task,
    config: BaseConfig,
    work: Path,
    export: Path,
) -> list[dict[str, float]]:
    """Train the whole model to answer; leaves the averaged weights in `model`. The scores at each look come back."""
    state_path = work / "captions-state.pt"
    conversations = batches.Conversations(task, processor)
    tokens_of_labels = label_tokens(processor, task.labels)
    optimiser = _optimiser([model, heads], config)
    tokens: list[torch.Tensor] = []
    seeing = model.model.visual.register_forward_hook(lambda _module, _inputs, output: tokens.append(output.pooler_output))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, looks = 0, []  # type: int, list[dict[str, float]]
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        average, first, looks = state["average"], state["step"], state["looks"]
    layout = PatchLayout.of(processor.video_processor)
    progress = Progress("captions", first, config.caption_steps)
    right: dict[str, float] = {}
    for step in range(first, config.caption_steps):
        rng = np.random.default_rng(derived_seed(config.seed, "base/captions", step))
        numbers = rng.integers(clips.num_clips, size=config.caption_batch)
        batch = conversations.collate([conversations.draw(clips.slots[n], rng) for n in numbers])
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, config.caption_steps, config.warmup_steps, config.caption_rate)
        tokens.clear()
        loss = caption_loss(model, batches.patches(clips.frames(numbers), layout), batch, tokens_of_labels)
        slot_loss, now = heads(tokens[0], numbers)
        (loss + config.slot_weight * slot_loss).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)
        right = {name: 0.98 * right[name] + 0.02 * now[name] if right else now[name] for name in SLOT_NAMES}
        progress.step(step, loss.item(), norm=float(norm), **right)
        looking = (step + 1) % config.look_every == 0
        if looking or step + 1 == config.look_every // 2:
            looks.append(_look(model, average, processor, task, config, step + 1, export))
        if (step + 1) % config.save_every == 0:
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
            _save(state_path, state | {"average": average, "step": step + 1, "looks": looks})
    seeing.remove()
    _load_average(model, average)
    return looks


def _load_average(model: Qwen2_5_VLForConditionalGeneration, average: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(average[name])


def _look(
    model: Qwen2_5_VLForConditionalGeneration,
    average: dict[str, torch.Tensor],
    processor: Qwen2_5_VLProcessor,
    task: Task,
    config: BaseConfig,
    step: int,
    export: Path,
) -> dict[str, float]:
    """Score and export the averaged weights, then go on with the running ones."""
    running = {name: p.detach().clone() for name, p in model.named_parameters()}
    _load_average(model, average)
    scores = {domain: slot_scores(model, processor, task, domain, config.look_clips) for domain in ("general", "target")}
    save_model(model, processor, export)
    _load_average(model, running)
    for domain, score in scores.items():
        print(f"look at {step}, {domain}: " + "  ".join(f"{name} {value:.3f}" for name, value in score.items()), flush=True)
    return {"step": float(step), "general": scores["general"]["overall"], "target": scores["target"]["overall"]}


def save_model(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write a folder that transformers and vLLM load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def new_model(task: Task, config: BaseConfig) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """The untrained model and its processor."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from rbft.models.positions import use_reference_positions

    tokenizer = train_tokenizer(task)
    torch.manual_seed(config.seed)
    shape = model_config(tokenizer)
    model = Qwen2_5_VLForConditionalGeneration(shape)
    use_reference_positions(model)  # What vLLM computes; transformers' own would teach the text other places than it is served at.
    model.generation_config.eos_token_id = [shape.text_config.eos_token_id, shape.text_config.pad_token_id]
    model.generation_config.pad_token_id = shape.text_config.pad_token_id
    return model, make_processor(tokenizer)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def begin_part(work: Path, config: BaseConfig) -> list[dict[str, Any]]:
    """Note in `work` that a part of the run begins now, with this code and configuration; all parts so far come back, the new one last.

    A run that was cut short and went on with other code or settings is not the run its last configuration describes: the parts say so.
    """
    state_path, parts_path = work / "captions-state.pt", work / "parts.json"
    parts = json.loads(parts_path.read_text()) if parts_path.exists() else []
    first = torch.load(state_path, weights_only=True)["step"] if state_path.exists() else 0
    sources = sorted(Path(__file__).resolve().parent.glob("*.py"))
    hashes = {f"miniature/{path.name}": _sha256(path) for path in sources} | {TASK_FILE.name: _sha256(TASK_FILE)}
    parts.append({"first_caption_step": first, "config": asdict(config), "sources_sha256": hashes})
    parts_path.write_text(json.dumps(parts, indent=2))
    return parts


def write_provenance(
    folder: Path, parts: list[dict[str, Any]], looks: list[dict[str, float]], scores: dict[str, dict[str, float]], wall_s: float
) -> None:
    """Write `provenance.json`: what made the weights in `folder`, from which code, and what they can do. `wall_s` is of the last part."""
    import transformers

    provenance = {
        "script": "python -m miniature.base",
        "parts": parts,
        "files_sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != "provenance.json"},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "looks": looks,
        "slots": scores,
        "wall_s_of_last_part": round(wall_s),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.base", description="Train the miniature's base model.")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs/base", help="rendered clips, checkpoints; a run that was cut short goes on"
    )
    parser.add_argument("--export", type=Path, default=ROOT / "runs/base/export", help="the model as it stands, at every look")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="the finished model")
    for name in ("num_clips", "tower_steps", "caption_steps", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(BaseConfig, name))
    args = parser.parse_args()
    config = BaseConfig(seed=args.seed, num_clips=args.num_clips, tower_steps=args.tower_steps, caption_steps=args.caption_steps)

    started = time.monotonic()
    torch.set_num_threads(config.num_threads)
    args.work.mkdir(parents=True, exist_ok=True)
    parts = begin_part(args.work, config)
    task = load_task()
    clips = Clips(general_clips(args.work / "clips", config.seed, config.num_clips, config.num_threads), config)
    model, processor = new_model(task, config)
    use_segments(model, packed=False)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    heads = SlotHeads(clips, model.config.text_config.hidden_size, config.seed + 1)
    train_tower(model, processor, clips, heads, config, args.work)
    looks = train_captions(model, processor, clips, heads, task, config, args.work, args.export)
    scores = {domain: slot_scores(model, processor, task, domain, config.final_clips) for domain in ("general", "target")}
    save_model(model, processor, args.out)
    write_provenance(args.out, parts, looks, scores, time.monotonic() - started)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
