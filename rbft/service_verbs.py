"""Verbs about the HTTP service, from a client's or an owner's side: `rbft keys`. The service itself is `python -m serve`."""

from __future__ import annotations

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Add the verbs to the parser of `rbft.cli`."""
    _add_keys(subparsers)


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
