"""Model folders that lie elsewhere: fetched once a node, checked, and from then on used without a network.

    /data/models/Qwen2.5-VL-7B-Instruct              a folder that every node sees: used where it lies
    s3://bucket/models/Qwen2.5-VL-7B-Instruct        a folder in a store (`rbft.storage`)
    hf://Qwen/Qwen2.5-VL-7B-Instruct@<commit>        a hub's repository at a commit, all 40 digits of it; HF_TOKEN and HF_ENDPOINT count

A copy lies in `$RBFT_MODEL_CACHE` (default: ~/.cache/rbft/models) under a name made of where it is from; `FETCHED.json`, written last,
tells its fingerprint. A folder in a store is taken as it was when it was first fetched: another model needs another name.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyarrow import fs

from rbft import artifacts, storage
from rbft.config import ModelConfig
from rbft.errors import ArtifactError, ModelError

_LOG = logging.getLogger(__name__)

CACHE_VARIABLE = "RBFT_MODEL_CACHE"
HUB = "hf://"
_HUB_FORM = re.compile(r"hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "README.md")
"""Of a repository, or of a folder in a store: weights as safetensors and what goes with them, so that a folder which a run of ours made is
whole. No pickle, and no code."""


def is_remote(path: str) -> bool:
    """Told from its form: who asks a store may be offline."""
    return "://" in path and not path.startswith("file://")


def local_model(path: str, fingerprint: str | None = None) -> Path:
    """The model folder `path` on this node, fetched if it lies elsewhere and is not here yet.

    `fingerprint`: what `artifacts.model_fingerprint` must say of it. Raises `ModelError` if it cannot be fetched or is not that one.
    """
    if not is_remote(path):
        folder = storage.local_path(path) if "://" in path else Path(path)
        if fingerprint is not None and folder.is_dir():
            require_fingerprint(path, artifacts.model_fingerprint(folder), fingerprint)
        return folder
    place = _cache() / artifacts.fingerprint([path])
    if not (place / "FETCHED.json").is_file():
        with _alone(place):
            if not (place / "FETCHED.json").is_file():  # nobody has fetched it meanwhile
                _fetch(path, place, fingerprint)
    if fingerprint is not None:
        found = json.loads((place / "FETCHED.json").read_text())["fingerprint"]
        require_fingerprint(f"{storage.shown(path)}, as it was fetched to {place} (remove that to fetch it anew)", found, fingerprint)
    return place / "model"


def on_this_node(model: ModelConfig) -> ModelConfig:
    """`model`, with the path of its copy on this node if it lies elsewhere."""
    if not is_remote(model.path):
        return model
    return model.model_copy(update={"path": str(local_model(model.path, model.fingerprint))})


def _cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/rbft/models")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """For one process of this node at a time; the others wait. It ends with the process that holds it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(path: str, place: Path, fingerprint: str | None) -> None:
    _LOG.warning("fetching model=%s to=%s", storage.shown(path), place)
    for left in place.parent.glob(f"{place.name}.*"):  # by who was killed while he fetched
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    scratch = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}")
    model = scratch / "model"
    try:
        model.mkdir(parents=True)
        if path.startswith(HUB):
            _fetch_from_hub(path, model)
        else:
            _fetch_from_store(path, model)
        if artifacts.is_complete(str(model)):  # made by a run of ours, which wrote down the hash of every file
            artifacts.verify(model, [name for name in artifacts.read_marker(str(model))["parts"] if _is_wanted(name)])
        found = artifacts.model_fingerprint(model)
        if fingerprint is not None:
            require_fingerprint(path, found, fingerprint)
        told: dict[str, Any] = {"from": storage.shown(path), "fingerprint": found, "files": artifacts.folder_hashes(model)}
        (scratch / "FETCHED.json").write_text(json.dumps(told, indent=2) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        scratch.replace(place)
    except (ArtifactError, OSError) as error:
        raise ModelError(f"{storage.shown(path)}: cannot be fetched ({' '.join(str(error).split())[:400]})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch_from_store(path: str, model: Path) -> None:
    where, folder = storage.filesystem(path)
    if storage.retried(where.get_file_info)(folder).type != fs.FileType.Directory:
        raise ModelError(f"{storage.shown(path)}: no such folder; give the folder of a Hugging Face model (the one with config.json)")
    found = [os.path.relpath(info.path, folder) for info in storage.list_files(path, recursive=True)]
    storage.download_files(path, filter(_is_wanted, found), model)


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _WANTED)


def _fetch_from_hub(path: str, model: Path) -> None:
    """Raises `ModelError` where a file is not the one that the hub's own list of hashes names."""
    found = _HUB_FORM.fullmatch(path)
    if found is None:
        raise ModelError(f"{path}: give the commit too, hf://ORG/NAME@ and its 40 digits: a branch may be another model tomorrow")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]  # of httpx, or of httpx2
    from huggingface_hub.hf_api import RepoFile

    name, revision = found.groups()
    try:
        listed = [each for each in HfApi().list_repo_tree(name, recursive=True, revision=revision) if isinstance(each, RepoFile)]
        snapshot_download(name, revision=revision, local_dir=model, allow_patterns=list(_WANTED))
    except (HTTPError, OfflineModeIsEnabled) as error:  # a connection that fails is no OSError there
        raise ModelError(f"{path}: cannot be fetched ({' '.join(str(error).split())[:400]})") from None
    shutil.rmtree(model / ".cache", ignore_errors=True)  # the hub client's notes on its downloads
    for each in listed:
        if each.lfs is not None and (model / each.path).is_file():
            if artifacts.file_sha256(model / each.path) != each.lfs.sha256:
                raise ModelError(f"{path}: {each.path} is not what the hub lists; fetch it again")


def require_fingerprint(path: str, found: str, wanted: str) -> None:
    """Raise `ModelError` if the model at `path`, whose fingerprint is `found`, is not the one that is `wanted`."""
    if found != wanted:
        raise ModelError(f"{storage.shown(path)}: its fingerprint is {found}, and model.fingerprint says {wanted}; it is another model")
