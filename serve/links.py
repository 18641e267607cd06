"""Addresses that a client names, read strictly, and held against what the configuration allows. Nothing is opened here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rbft.config import UrlsConfig
from rbft.errors import UrlRefusedError

MAX_CHARACTERS = 2048

# No second parser may read another host out of it: plain letters only, and whatever could end an authority stands where it must.
_HTTPS = re.compile(r"https://(?P<authority>[A-Za-z0-9.-]+(?::[0-9]{1,5})?)(?P<target>/[!$-;=?-\[\]_a-z~]*)?")
_SEPARATORS = re.compile(r"[?#%\\]")


@dataclass(frozen=True)
class Link:
    """A video that a client names by its address."""

    url: str


@dataclass(frozen=True)
class WebTarget:
    """An https address that may be asked, once what its host resolves to has been looked at."""

    host: str
    port: int
    target: str
    """Path and query."""


@dataclass(frozen=True)
class StoredTarget:
    """A file in a folder that the configuration names."""

    folder: str
    """As configured, with its options."""
    name: str
    """Below the folder, with forward slashes and no steps up."""


def allowed_target(url: str, config: UrlsConfig) -> WebTarget | StoredTarget:
    """What `url` means; raises `UrlRefusedError` unless `config` allows it."""
    if url.startswith("https://"):
        return _web_target(url, config)
    return _stored_target(url, config)


def _web_target(url: str, config: UrlsConfig) -> WebTarget:
    found = _HTTPS.fullmatch(url)
    if found is None:
        raise UrlRefusedError("not a plain https address (https://host/path, without user, #fragment or blanks); send the file instead")
    authority = found["authority"].lower().removesuffix(":443")
    if authority not in config.hosts:
        raise UrlRefusedError("its host and port are not among those that this service fetches from; send the file instead")
    host, _, port = authority.partition(":")
    return WebTarget(host, int(port or 443), found["target"] or "/")


def _stored_target(url: str, config: UrlsConfig) -> StoredTarget:
    for folder in config.storage:
        name = url.removeprefix(folder.partition("?")[0])
        if name == url:
            continue
        if not name.isprintable() or _SEPARATORS.search(name) or any(part in ("", ".", "..") for part in name.split("/")):
            raise UrlRefusedError("not the plain name of a file (no ?, #, %, backslash, // or steps up); send the file instead")
        return StoredTarget(folder, name)
    raise UrlRefusedError("not an address that this service fetches from; send the file instead")
