"""The verb `rbft convert`: an officially published checkpoint of a video model becomes a folder that a run can name."""

from __future__ import annotations

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="make a model folder of an official UniFormerV2 or InternVideo2 checkpoint",
        description="Read the weights of an officially published UniFormerV2 or InternVideo2 (.pyth, .pth, .bin, in a child process that "
        "unpickles tensors alone; or .safetensors) and write a folder for evaluation.video_classifiers. docs/baselines.md says where to "
        "get them.",
    )
    parser.add_argument("checkpoint", help="the file that was downloaded")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the model folder to make")
    parser.add_argument("--frames", type=int, metavar="N", help="frames a clip (default: as it was trained); positions are interpolated")
    parser.add_argument(
        "--size", type=int, metavar="N", help="pixels of both sides (default: as it was trained); positions are interpolated"
    )
    parser.add_argument(
        "--trained-frames",
        type=int,
        default=8,
        metavar="N",
        help="frames that the checkpoint was trained with, the number in its name (default: %(default)s)",
    )
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads of a model of no published width")
    parser.set_defaults(handler=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from rbft.models.video.convert import convert_checkpoint
    from rbft.models.video.official_configs import Geometry

    geometry = Geometry(arguments.frames, arguments.size, arguments.trained_frames, arguments.heads)
    print(f"{convert_checkpoint(arguments.checkpoint, arguments.out, geometry)}: {arguments.out}")
