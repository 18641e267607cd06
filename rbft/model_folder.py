"""Whether a folder holds a whole model, told from its files alone: nothing is loaded, so it takes milliseconds for any size.

Checked: config.json, every safetensors shard of the index with its full length, tokenizer, chat template, processor configuration.
Not checked: that the weights fit the configuration (loading does that).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.errors import ModelError

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class ModelFolder:
    """What `require_model_folder` found."""

    path: Path
    model_type: str
    """As in config.json, e.g. "qwen2_5_vl"."""
    num_shards: int
    weight_bytes: int


def require_model_folder(path: str | Path) -> ModelFolder:
    """The model in the folder `path`; raises `ModelError` that names the first thing that is missing or broken."""
    found = _require_weights(path)
    folder = found.path
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ModelError(f"{folder}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt); copy it from the base model")
    _require_processor(folder)
    if not any((folder / name).is_file() for name in _CHAT_TEMPLATES):
        tokenizer_config = folder / "tokenizer_config.json"
        if not (tokenizer_config.is_file() and "chat_template" in _read_json(tokenizer_config)):
            raise ModelError(f"{folder}: has no chat template ({' or '.join(_CHAT_TEMPLATES)}); copy it from the base model")
    return found


def require_classifier_folder(path: str | Path) -> ModelFolder:
    """The same of a video classifier, which needs neither tokenizer nor chat template."""
    found = _require_weights(path)
    _require_processor(found.path)
    return found


def _require_weights(path: str | Path) -> ModelFolder:
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise ModelError(f"{path}: {what}; give the folder of a Hugging Face model (the one with config.json)")
    model_type = _read_json(folder / "config.json").get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{folder / 'config.json'}: has no model_type; give the folder of a Hugging Face transformers model")
    shards = _shards(folder)
    return ModelFolder(folder, model_type, len(shards), sum(_whole_shard_bytes(shard) for shard in shards))


def _require_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise ModelError(f"{folder}: has no processor configuration ({', '.join(_PROCESSORS)}); copy it from the base model")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: has no {path.name}; give a whole model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is not a JSON object; copy it again")
    return content


def _shards(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, all of which exist."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / _INDEX).is_file():
        if any(folder.glob("pytorch_model*.bin")):
            raise ModelError(f"{folder}: has only pickled weights (pytorch_model*.bin), which are not read; save the model as safetensors")
        raise ModelError(f"{folder}: has no weights (model.safetensors or {_INDEX}); copy or download them")
    weight_map = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / _INDEX}: has no weight_map; copy it again")
    # Path().name: an index is data, and must not point out of its folder.
    names = sorted({Path(str(name)).name for name in weight_map.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: lacks {len(missing)} of {len(names)} weight files ({', '.join(missing[:3])}); copy or download them")
    return [folder / name for name in names]


def _whole_shard_bytes(path: Path) -> int:
    """Size of a safetensors file whose length is what its header promises (format: 8 bytes header size, JSON header, data)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if _LFS_POINTER.startswith(start) and start:
            raise ModelError(f"{path}: is a Git LFS pointer, not the weights; run git lfs pull")
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_bytes > min(size, _MAX_HEADER_BYTES):
            raise ModelError(f"{path}: is cut short or no safetensors file ({size} bytes); copy it again")
        try:
            header = json.loads(stream.read(header_bytes))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise ModelError(f"{path}: its safetensors header cannot be read; copy it again") from None
    if size != 8 + header_bytes + end:
        raise ModelError(f"{path}: holds {size} bytes where its header promises {8 + header_bytes + end}; copy it again")
    return size
