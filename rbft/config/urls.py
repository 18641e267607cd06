"""Which addresses the service fetches videos from; none by default."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from rbft.config.section import Section

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# A name, never an address: its last label begins with a letter, as that of no spelling of an IPv4 address does.
_HOST = re.compile(rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?(?::[1-9][0-9]{{0,4}})?")
_STORAGE = re.compile(r"(?:(?:s3|gs)://[^/?#@\s]+(?:/[^?#\s]*)?/|file:///(?:[^?#\s]+/)?)(?:\?[^#\s]*)?")


class UrlsConfig(Section):
    """Both lists are empty by default, and then no address is taken."""

    hosts: tuple[str, ...] = ()
    """Names of hosts that are asked over https, each exactly as addresses must have it, and with its port (`clips.example.org:8443`) where
    that is not 443. Names only: whatever they resolve to must be an address of the public internet."""
    storage: tuple[str, ...] = ()
    """Folders whose files may be named, below them too, with a slash at the end: `s3://bucket/clips/`, `gs://bucket/`, `file:///srv/clips/`.
    They are read with what the service is allowed to read; options of the filesystem (`?region=…`) stand here, and no client gives any."""
    timeout_s: float = Field(30.0, gt=0)
    """For the whole of a file."""

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(host.lower() for host in hosts)
        for host in lowered:
            if len(host) > 259 or not _HOST.fullmatch(host) or int(host.partition(":")[2] or 443) > 65_535:
                raise ValueError(f"{host!r} is not the name of a host; give names such as clips.example.org, without https:// and a path")
        return tuple(host.removesuffix(":443") for host in lowered)

    @field_validator("storage")
    @classmethod
    def _are_folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not _STORAGE.fullmatch(folder):
                raise ValueError(f"{folder.partition('?')[0]!r} is not a folder; give such as s3://bucket/clips/, with a slash at the end")
        return folders

    @property
    def is_on(self) -> bool:
        return bool(self.hosts or self.storage)
