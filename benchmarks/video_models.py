"""UniFormerV2 and InternVideo2, ours against the official code, and VideoMAE of the same size.

    python -m benchmarks video_models [--json PATH] [--checkouts FOLDER]

Forward without gradients, and a training step without the optimiser (forward, loss, backward), of the same clips, in turns, in one process.
Ours and theirs have the same weights, and their answers are compared before anything is timed. The official code is read from checkouts
(`--checkouts`; benchmarks/peers/official_video.py says where to get them); on a CPU, and wherever flash_attn is not installed, its
InternVideo2 runs its plain attention. Without checkouts only ours and VideoMAE are timed, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.machine import describe_machine
from benchmarks.peers import official_video
from rbft.models.video.convert import convert_weights, model_class
from rbft.models.video.official_configs import Geometry

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/video_models.md"
CHECKOUTS = ROOT / "runs/benchmarks/checkouts"
NUM_LABELS = 3
SMALLEST_RATIO = 1.0
"""The goal: never slower than the official code."""


@dataclass(frozen=True)
class Case:
    """One model, as the official constructors take it."""

    name: str
    kind: str
    settings: dict[str, Any]
    num_frames: int
    size: int


def cases(size: str) -> list[Case]:
    """`size`: "base", as published; "tiny" for tests."""
    if size == "base":
        vit: dict[str, Any] = {
            "input_resolution": 224,
            "patch_size": 16,
            "width": 768,
            "layers": 12,
            "heads": 12,
            "n_dim": 768,
            "n_head": 12,
        }
        intern: dict[str, Any] = {"img_size": 224, "patch_size": 14, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4}
        pixels, last, more = 224, [8, 9, 10, 11], [4, 5, 6, 7, 8, 9, 10, 11]
    else:
        vit = {"input_resolution": 32, "patch_size": 16, "width": 64, "layers": 2, "heads": 1, "n_dim": 64, "n_head": 1}
        intern = {"img_size": 28, "patch_size": 14, "embed_dim": 384, "depth": 1, "num_heads": 6, "mlp_ratio": 1}
        pixels, last, more = 32, [1], [0, 1]
    of_image = {"no_lmhra": True, "temporal_downsample": False, "return_list": last}
    of_motion = {"no_lmhra": False, "temporal_downsample": True, "return_list": more}
    return [
        Case("UniFormerV2-B/16, Kinetics, 8 frames", "uniformerv2", vit | of_image, 8, pixels),
        Case("UniFormerV2-B/16, Something-Something, 16 frames", "uniformerv2", vit | of_motion, 16, pixels),
        Case("InternVideo2-B/14, 8 frames", "internvideo2", intern, 8, intern["img_size"]),
    ]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video_models")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers too")
    parser.add_argument("--checkouts", type=Path, default=CHECKOUTS, metavar="FOLDER", help="of the official repositories (%(default)s)")
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lacking = official_video.missing(chosen.checkouts)
    if lacking:
        print(f"the official code is not there ({lacking[0]}), so nothing is compared with it; benchmarks/peers/official_video.py says how")
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {}
    differences: dict[str, float] = {}
    for case in cases(chosen.size):
        contenders, difference = _contenders(case, None if lacking else chosen.checkouts, device)
        if difference is not None:
            differences[case.name] = difference
        seconds[case.name] = _time(contenders, case, chosen.rounds, device)
        print(f"{case.name}: {_medians(seconds[case.name])}", flush=True)
    found = _figures(seconds, differences) | {"machine": describe_machine(), "threads": torch.get_num_threads(), "device": str(device)}
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    if chosen.size == "base" and not lacking:
        RESULT.write_text(_page(found, chosen.rounds))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _contenders(case: Case, checkouts: Path | None, device: torch.device) -> tuple[dict[str, nn.Module], float | None]:
    """Ours, the official one with the same weights, and VideoMAE; and the largest difference of the answers of the first two."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {}
    difference = None
    if checkouts is not None:
        made["official"] = _official(case, checkouts)
        with torch.no_grad():
            for name, parameter in made["official"].named_parameters():
                # Blocks that begin as nothing, and a head that begins as next to nothing, would hide a difference.
                if not parameter.any() or name.startswith("head."):
                    parameter.normal_(std=0.02)
        geometry = Geometry(trained_frames=case.num_frames, global_layers=case.settings.get("return_list"))
        config, weights = convert_weights(made["official"].state_dict(), geometry, case.name)
        config.classifier_dropout = 0.0
        if case.kind == "uniformerv2":
            config.global_dropout = 0.0
        made["ours"] = model_class(config)(config)
        made["ours"].load_state_dict(weights)
        clips = torch.randn(1, case.num_frames, 3, case.size, case.size)
        with torch.inference_mode():
            answers = [_answer(name, model.eval(), clips) for name, model in made.items()]
        difference = float((answers[0] - answers[1]).abs().max())
        if difference > 1e-4 * float(answers[0].abs().max()):
            sys.exit(f"{case.name}: ours answers otherwise than the official code (by {difference:.2g}); nothing is timed")
    else:
        made["ours"] = _ours(case)
    made["VideoMAE"] = _videomae(case)
    return {name: model.to(device).train() for name, model in made.items()}, difference


def _official(case: Case, checkouts: Path) -> nn.Module:
    if case.kind == "internvideo2":
        return official_video.internvideo2(
            checkouts, **case.settings, num_frames=case.num_frames, num_classes=NUM_LABELS, drop_path_rate=0.0, init_values=0.1
        )
    num_globals = len(case.settings["return_list"])
    own = {"n_layers": num_globals, "mlp_dropout": [0.0] * num_globals, "cls_dropout": 0.0, "num_classes": NUM_LABELS}
    return official_video.uniformerv2(checkouts, **case.settings, t_size=case.num_frames, **own)


def _ours(case: Case) -> nn.Module:
    from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
    from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification

    own, shared = case.settings, {"num_frames": case.num_frames, "image_size": case.size, "num_labels": NUM_LABELS}
    if case.kind == "internvideo2":
        size = own["embed_dim"]
        sizes = {"hidden_size": size, "num_hidden_layers": own["depth"], "num_attention_heads": own["num_heads"]}
        intern = InternVideo2Config(**shared, **sizes, patch_size=own["patch_size"], intermediate_size=size * own["mlp_ratio"])
        return InternVideo2ForVideoClassification(intern)
    size = own["width"]
    sizes = {"hidden_size": size, "num_hidden_layers": own["layers"], "num_attention_heads": own["heads"]}
    local = {"has_local_blocks": not own["no_lmhra"], "halves_time": own["temporal_downsample"], "local_size": int(size / 1.5)}
    dropout = {"global_dropout": 0.0, "classifier_dropout": 0.0}
    vit = UniFormerV2Config(
        **shared, **sizes, **local, **dropout, patch_size=own["patch_size"], intermediate_size=4 * size, global_layers=own["return_list"]
    )
    return UniFormerV2ForVideoClassification(vit)


def _videomae(case: Case) -> nn.Module:
    """As wide and as deep, with patches of 16 and tubelets of 2; it sees twice 8 frames, so that it has as many points of time."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    own = case.settings
    keys = ("width", "layers", "heads") if case.kind == "uniformerv2" else ("embed_dim", "depth", "num_heads")
    size, layers, heads = (int(own[key]) for key in keys)
    config = VideoMAEConfig(
        **{"image_size": case.size, "patch_size": own["patch_size"], "num_frames": 16, "hidden_size": size, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "intermediate_size": 4 * size, "num_labels": NUM_LABELS},
    )
    return VideoMAEForVideoClassification(config)


def _answer(name: str, model: nn.Module, clips_BTCHW: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(clips_BTCHW.transpose(1, 2)) if name == "official" else model(clips_BTCHW).logits
    return logits


def _time(contenders: dict[str, nn.Module], case: Case, num_rounds: int, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """What is timed -> contender -> seconds of each round, after one forward each; who is first changes from round to round."""
    clips = {name: torch.randn(1, 16 if name == "VideoMAE" else case.num_frames, 3, case.size, case.size).to(device) for name in contenders}
    target = torch.tensor([1], device=device)
    found: dict[str, dict[str, list[float]]] = {what: {name: [] for name in contenders} for what in ("forward", "training step")}

    def forward(name: str) -> None:
        with torch.inference_mode():
            _answer(name, contenders[name], clips[name])

    def step(name: str) -> None:
        cross_entropy(_answer(name, contenders[name], clips[name]).float(), target).backward()
        contenders[name].zero_grad()

    for name in contenders:
        forward(name)
    for round_ in range(num_rounds):
        names = list(contenders)
        names = names[round_ % len(names) :] + names[: round_ % len(names)]
        for what, run in (("forward", forward), ("training step", step)):
            for name in names:
                found[what][name].append(_seconds(run, name, device))
    return found


def _seconds(run: Callable[[str], None], name: str, device: torch.device) -> float:
    """On a CPU those of its cores that this process used, so that other programs do not count; on a GPU those that passed."""
    if device.type == "cpu":
        begun = time.process_time()
        run(name)
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run(name)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def _medians(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {what: {name: round(statistics.median(taken), 4) for name, taken in by_name.items()} for what, by_name in seconds.items()}


def _ratio(by_name: dict[str, list[float]], peer: str) -> float | None:
    """The peer's seconds over ours, the median over rounds: above 1 ours is quicker. None where the peer is not there."""
    if peer not in by_name:
        return None
    return statistics.median(theirs / ours for theirs, ours in zip(by_name[peer], by_name["ours"], strict=True))


def _figures(seconds: dict[str, dict[str, dict[str, list[float]]]], differences: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"ratio_vs_official": {}, "ratio_vs_videomae": {}, "seconds": {}, "largest_difference": differences}
    for name, by_what in seconds.items():
        for key, peer in (("ratio_vs_official", "official"), ("ratio_vs_videomae", "VideoMAE")):
            found[key][name] = {what: _ratio(by_name, peer) for what, by_name in by_what.items()}
        found["seconds"][name] = _medians(by_what)
    return found


def _page(found: dict[str, Any], num_rounds: int) -> str:
    from ray_jobs.run import versions

    used = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("rbft", "torch", "transformers"))
    lines = []
    for name, by_what in found["seconds"].items():
        for what, seconds in by_what.items():
            ratios = [found[key][name][what] for key in ("ratio_vs_official", "ratio_vs_videomae")]
            times = " | ".join(f"{seconds[who]:.3f}" for who in ("ours", "official", "VideoMAE"))
            lines.append(f"| {name} | {what} | {times} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    slowest = min(ratio for by_what in found["ratio_vs_official"].values() for ratio in by_what.values())
    told = "reached" if slowest >= SMALLEST_RATIO else "missed"
    largest = max(found["largest_difference"].values())
    table = "\n".join(lines)
    return f"""# UniFormerV2 and InternVideo2

`python -m benchmarks video_models --rounds {num_rounds} --threads {found["threads"]}`, {time.strftime("%Y-%m-%d")}, on
{found["machine"]}; torch on {found["device"]}, float32. {used}.
One clip; medians of {num_rounds} rounds, in turns, in one process; on a CPU seconds of CPU time, so that other programs on the
machine do not count.

Ours and the official code have the same weights and give the same answers (largest difference {largest:.1e}). Ratios are the peer's seconds
over ours, above 1 ours is quicker, medians of the rounds' ratios. The goal is never to be slower than the official code: {told}
(the smallest ratio is {slowest:.2f}). VideoMAE is as wide and as deep, and sees 16 frames in pairs. A training step is forward, loss and
backward.

| model | | ours, s | official, s | VideoMAE, s | official / ours | VideoMAE / ours |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
{table}

What ours does otherwise (not measured one by one): pooling by attention asks with one query a clip, so that no
token's key or value is computed (`PoolingAttention`); SDPA in place of plain attention (InternVideo2); patches as
one matrix product in place of a 3-D convolution.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
