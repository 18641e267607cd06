"""No secret in a configuration: it is copied into the run's folder, its overrides into logs and process lists.

What holds one is refused where the file is read. A message names the place, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rbft.errors import ConfigError

_SECRET_KEY = re.compile(
    r"(?i)(^|[_-])(api[_-]?key|secret([_-]?key)?|access[_-]?key(_id)?|password|authorization|(access|auth)[_-]?token)$"
)
_SECRET_PARAMETER = re.compile(r"(?i)(signature|sig|credential|token|password|secret|key)$")
"""Of a URI's query: signed addresses, and keys. Where a store is and how it is reached (region, endpoint_override, scheme) is no secret."""


def require_no_secrets(raw: dict[str, Any], where: str) -> None:
    """Raise `ConfigError` naming every place in `raw`, a configuration as it was read from `where`, that holds a secret."""
    places = [f"{'.'.join(path)} {what}" for path, what in _secrets(raw, ())]
    if places:
        raise ConfigError(
            f"{where}: {'; '.join(places)}: what stands in a configuration is copied into the run's folder; give secrets by environment "
            "variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, `api_key_env`) or by the machine's own role"
        )


def _secrets(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Path in the configuration, and what is there."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and inner and _SECRET_KEY.search(str(key)):
                yield (*path, str(key)), "looks like a secret"
            else:
                yield from _secrets(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _secrets(inner, (*path, str(index)))
    elif isinstance(value, str) and "://" in value and not re.search(r"\s", value):
        yield from ((path, what) for what in _in_uri(value))


def _in_uri(uri: str) -> Iterator[str]:
    try:
        parts = urlsplit(uri)
    except ValueError:  # it is no URI, and whoever uses it will say so
        return
    if "@" in parts.netloc:
        yield "has a user or key before its @"
    if any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        yield "has a key or signature behind its ?"
