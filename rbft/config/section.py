"""What every section of a configuration is: frozen, and without a key it does not know; and what several check."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def plain_url(url: str, example: str, where_keys_go: str) -> str:
    """`url` without a slash at its end. What is wrong may hold a key, so that no message repeats it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must begin with http:// or https:// and a host, e.g. {example}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"must hold no user, password, ?query or #fragment; put the key in an environment variable, {where_keys_go}")
    return url.rstrip("/")
