"""Verbs about the HTTP service: `rbft classify` asks one, `rbft keys` says who may. The service itself is `python -m serve`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def register(subparsers: Any) -> None:
    """Add the verbs to the parser of `rbft.cli`."""
    _add_classify(subparsers)
    _add_keys(subparsers)


def _add_classify(subparsers: Any) -> None:
    parser = subparsers.add_parser("classify", help="ask a running service about video files", description=_CLASSIFY_DESCRIPTION)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a video, or an address that the service may fetch it from")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default: %(default)s)")
    parser.add_argument("--context", metavar="TEXT", help="text that comes with the videos, for each of them")
    parser.add_argument("--threshold", type=float, metavar="P", help="with two labels: answer the second one from this probability on")
    parser.add_argument("--why", action="store_true", help="also the rationale")
    parser.add_argument("--json", action="store_true", help="one line of JSON a file, with all that the service says")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="files at a time (default: %(default)s)")
    parser.set_defaults(handler=_classify)


_CLASSIFY_DESCRIPTION = """Ask a running service about video files: a line a file, in the order given. The key is read from the environment
variable RBFT_KEY. Exits with 1 if any file was refused."""


def _classify(arguments: argparse.Namespace) -> int:
    from rbft.api import ClassifyAnswer
    from rbft.client import Client
    from rbft.errors import (
        EngineError,
        EngineGoneError,
        RBFTError,
        RequestTimeoutError,
        UploadTimeoutError,
        UploadTooLargeError,
        UrlRefusedError,
        UrlUnreachableError,
        VideoError,
    )

    of_one_video = (
        VideoError,
        EngineError,
        UploadTooLargeError,
        UploadTimeoutError,
        RequestTimeoutError,
        UrlRefusedError,
        UrlUnreachableError,
    )

    def ask(video: str) -> ClassifyAnswer | RBFTError:
        options = {"threshold": arguments.threshold, "with_rationale": arguments.why}
        try:
            return client.classify(video, arguments.context, **options)
        except EngineGoneError:
            raise
        except of_one_video as error:
            return error  # The others are answered. Whatever else it is ends the command.

    num_refused = 0
    with Client(arguments.url) as client, ThreadPoolExecutor(max(1, arguments.parallel)) as threads:
        asked = [threads.submit(ask, path) for path in arguments.files]
        try:
            for path, answering in zip(arguments.files, asked, strict=True):
                answer = answering.result()
                if isinstance(answer, RBFTError):
                    num_refused += 1
                    print(f"{path}: error[{answer.code}]: {answer}", file=sys.stderr)
                elif arguments.json:
                    print(json.dumps({"file": path, **answer.model_dump(mode="json")}, ensure_ascii=False), flush=True)
                else:
                    told = " ".join(f"{label}={probability:.4f}" for label, probability in answer.probabilities.items())
                    print(f"{path}\t{answer.label}\t{told}", flush=True)
                    if answer.rationale is not None:
                        print(textwrap.indent(answer.rationale.text, "    "), flush=True)
                    elif (problem := answer.rationale_problem) is not None:
                        print(f"{path}: no rationale: error[{problem.code}]: {problem.detail}", file=sys.stderr)
        finally:
            threads.shutdown(cancel_futures=True)
    return 1 if num_refused else 0


def _add_keys(subparsers: Any) -> None:
    parser = subparsers.add_parser("keys", help="who may ask the HTTP service: add a key, list them, take one back")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once; its hash goes to FILE")
    add.add_argument("file", metavar="FILE", help="what `serve.keys` names; made if there is none")
    add.add_argument("name", metavar="NAME", help="whose key it is; stands in the log")
    add.set_defaults(handler=_add)
    show = actions.add_parser("list", help="the names of the keys in FILE")
    show.add_argument("file", metavar="FILE")
    show.set_defaults(handler=_list)
    remove = actions.add_parser("remove", help="take a key back; a running service sees it with its next request")
    remove.add_argument("file", metavar="FILE")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(handler=_remove)


def _add(arguments: argparse.Namespace) -> None:
    from rbft.keys import add_key

    print(add_key(arguments.file, arguments.name))


def _list(arguments: argparse.Namespace) -> None:
    from rbft.keys import read_keys

    for key in read_keys(arguments.file):
        print(key.name)


def _remove(arguments: argparse.Namespace) -> None:
    from rbft.keys import remove_key

    remove_key(arguments.file, arguments.name)
