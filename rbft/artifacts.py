"""Fingerprints, completeness and lineage of what a run leaves behind.

An artifact is a folder. It exists when its `COMPLETE.json` does, which is written last and names every part with its size and SHA-256;
a folder without the marker is work in progress. A fingerprint is the hash of all that determines an artifact, and of nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rbft import storage
from rbft.errors import ArtifactError

MARKER = "COMPLETE.json"
SCHEMA_VERSION = 1


def fingerprint(inputs: Any) -> str:
    """16 hex digits of the SHA-256 of `inputs` (JSON types, dataclasses' dicts) in canonical form."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def bytes_sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> {"bytes", "sha256"} of every file below `folder` but the marker itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        hashes = list(threads.map(file_sha256, files))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes, strict=True)
    }


def publish(source: Path, uri: str, fingerprint: str, lineage: dict[str, Any]) -> None:
    """Make the local folder `source` the artifact `uri`: parts first, the marker last.

    Where `uri` is local and `source` lies elsewhere, the parts are copied. An artifact that is already complete is left as it is.
    """
    if is_complete(uri, fingerprint):
        return
    parts = folder_hashes(source)
    if not (storage.is_local(uri) and storage.local_path(uri) == source.resolve()):
        storage.upload_folder(source, uri)
    mark_complete(uri, fingerprint, parts, lineage)


def mark_complete(uri: str, fingerprint: str, parts: dict[str, dict[str, Any]], lineage: dict[str, Any]) -> None:
    """Write the marker of the artifact `uri`, whose `parts` are all there."""
    marker = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "parts": parts, "lineage": lineage}
    storage.write_json(f"{uri}/{MARKER}", marker)


def read_marker(uri: str) -> dict[str, Any]:
    """The marker of the artifact `uri`; raises `ArtifactError` if it is not complete or of a schema this code does not know."""
    if not storage.exists(f"{uri}/{MARKER}"):
        raise ArtifactError(f"{uri}: not complete (no {MARKER}); submit the job again, it goes on where it stopped")
    marker = storage.read_json(f"{uri}/{MARKER}")
    if marker.get("schema_version") != SCHEMA_VERSION:
        found = marker.get("schema_version")
        raise ArtifactError(f"{uri}/{MARKER}: schema version {found}, this code reads {SCHEMA_VERSION}; make the artifact again")
    return dict(marker)


def is_complete(uri: str, fingerprint: str | None = None) -> bool:
    """Whether `uri` is a complete artifact, and if `fingerprint` is given, that very one."""
    if not storage.exists(f"{uri}/{MARKER}"):
        return False
    return fingerprint is None or read_marker(uri)["fingerprint"] == fingerprint


def verify(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise `ArtifactError` naming the first part of the local artifact `folder` that is missing, altered or of another size.

    `names`: look at these parts only; None is all of them.
    """
    parts = {name: part for name, part in read_marker(str(folder))["parts"].items() if names is None or name in names}
    for name, expected in parts.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise ArtifactError(f"{path}: missing or of the wrong size; delete {folder} and submit the job again")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        hashes = threads.map(file_sha256, [folder / name for name in parts])
        altered = [name for (name, expected), sha256 in zip(parts.items(), hashes, strict=True) if sha256 != expected["sha256"]]
    if altered:
        raise ArtifactError(f"{folder / altered[0]}: its bytes have changed since it was written; delete {folder} and submit the job again")


def model_fingerprint(folder: str | Path) -> str:
    """The fingerprint of a model folder: of its marker if a run of ours made it, else of the files that determine what it answers.

    Raises `ArtifactError` if it holds none of them.
    """
    if is_complete(str(folder)):
        return str(read_marker(str(folder))["fingerprint"])
    files = sorted({path for pattern in _MODEL_FILES for path in Path(folder).glob(pattern)})
    if not files:
        raise ArtifactError(f"{folder}: holds no model; give the folder of a Hugging Face model")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        hashes = threads.map(file_sha256, files)
        return fingerprint({path.name: sha256 for path, sha256 in zip(files, hashes, strict=True)})


_MODEL_FILES = (
    *("*.safetensors", "config.json", "generation_config.json", "*processor_config.json", "chat_template*"),
    *("tokenizer*", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
)
"""Not the README or a note on where the weights come from: a change of those is no other model."""
