"""A YAML file and overrides to a `RunConfig`, and what is told where they are wrong."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rbft.config.run import RunConfig
from rbft.config.secret_values import require_no_secrets
from rbft.config.serve import STAGE_1
from rbft.errors import ConfigError
from rbft.task import Task


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` and the `a.b=c` overrides describe; raises `ConfigError` with all mistakes on one line."""
    path = Path(path)
    raw = _read_yaml(path)
    task_file = raw["task"] if isinstance(raw.get("task"), str) else None
    _resolve(raw, path.parent)
    for override in overrides:
        _apply_override(raw, override)
    require_no_secrets(raw, str(path))
    _resolve(raw, Path.cwd())
    # A section whose keys are all commented out is null in YAML, and means the defaults.
    raw = {key: value for key, value in raw.items() if value is not None}
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        where = f"{path} with --set {' '.join(overrides)}" if overrides else str(path)
        if task_file and any(item["loc"][:1] == ("task",) for item in error.errors()):
            where += f" (task file {task_file})"
        raise ConfigError(f"{where}: {_explain(error, RunConfig)}") from None


def load_task(path: str | Path) -> Task:
    """The task in the file `path`; raises `ConfigError`."""
    try:
        return Task.model_validate(_read_yaml(Path(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, Task)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_PATH_KEYS = {
    ("data",): ("manifest", "annotations", "folder", "smarthome", "multihateclip", "video_root", "split_file"),
    ("model",): ("path",),
    ("teacher", "model"): ("path",),
    ("training",): ("clip_cache_folder", "scratch"),
    ("evaluation", "masking"): ("boxes",),
    ("evaluation",): ("api_cache", "attributes"),
    ("evaluation", "video_classifiers"): ("path",),
    ("serve",): ("rationale_model", "calibration", "keys", "samples"),
    ("serve", "canary"): ("video",),
}


def _resolve(raw: dict[str, Any], base: Path) -> None:
    """Make the paths in `raw` that are relative absolute, below `base`, and put the contents of the task file and the DeepSpeed file in
    place of their paths."""
    if isinstance(raw.get("task"), str):
        raw["task"] = _read_yaml(Path(_absolute(raw["task"], base)))
    training = raw.get("training")
    if isinstance(training, dict) and isinstance(training.get("deepspeed"), str):
        training["deepspeed"] = _read_yaml(Path(_absolute(training["deepspeed"], base)))
    for sections, keys in _PATH_KEYS.items():
        values: Any = raw
        for name in sections:
            values = values.get(name) if isinstance(values, dict) else None
        for section in values if isinstance(values, list) else [values]:
            if isinstance(section, dict):
                _resolve_section(section, keys, base, may_name_hub=sections[-1] in ("model", "video_classifiers"))


def _resolve_section(section: dict[str, Any], keys: Sequence[str], base: Path, *, may_name_hub: bool) -> None:
    for key in keys:
        if isinstance(section.get(key), list):
            section[key] = [_absolute(item, base) if isinstance(item, str) and item else item for item in section[key]]
        value = section[key] if isinstance(section.get(key), str) else ""
        # "Qwen/Qwen2-VL-7B-Instruct" is a hub name unless there is such a folder.
        is_hub_name = may_name_hub and not value.startswith((".", "~")) and not (base / value).exists()
        is_stage = key == "rationale_model" and value == STAGE_1
        if value and not is_hub_name and not is_stage:
            section[key] = _absolute(value, base)


def _absolute(value: str, base: Path) -> str:
    return value if "://" in value else str((base / Path(value).expanduser()).resolve())


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice in a mapping is a mistake: plain YAML readers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key_node.value!r} stands twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file (`rbft init` makes one)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-99-99
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, is {type(raw).__name__}")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    *parents, last = (part.strip() for part in dotted.split("."))
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {override}: write it as section.key=value, e.g. --set training.num_workers=4")
    for depth, parent in enumerate(parents):
        if raw.get(parent) is None:
            raw[parent] = {}
        if not isinstance(raw[parent], dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a section; set it as a whole")
        raw = raw[parent]
    try:
        raw[last] = _parse_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Every mistake pydantic found, on one line: the path, what is wrong, and for an unknown key what was probably meant."""
    items = error.errors()
    # A list with a wrong item is also reported as too short, which says nothing new.
    lists_with_wrong_items = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    kept = [item for item in items if not (item["type"] == "too_short" and item["loc"] in lists_with_wrong_items)]
    return "; ".join(_explain_one(item, root) for item in kept)


def _explain_one(item: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(location) or "file"
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key {where}; {_suggestion(root, location)}"
        case "missing":
            return f"{where} is missing; add it"
        case "model_type":
            return f"{where} must be a mapping of keys to values (got {_short(item['input'])})"
        case "value_error":
            message = str(item["msg"]).removeprefix("Value error, ")
            return f"{where}: {message}" if location else message
        case "string_type" if isinstance(item["input"], (bool, int, float, date)):
            return f"{where} must be text, and YAML reads this as {_short(item['input'])}; put it in quotes"
    return f"{where}: {item['msg']} (got {_short(item['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggestion(root: type[BaseModel], location: list[str]) -> str:
    """What the unknown key at `location` was meant to be: a near name beside it, the same name elsewhere, or any of its section."""
    *parents, key = location
    section: type[BaseModel] | None = root
    for part in parents:
        # A number is a place in a list, whose items `_section_of` has already stepped into.
        section = section if part.isdigit() or section is None else _section_of(section, part)
    known = list(section.model_fields) if section else []
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.7):
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    everywhere = list(_dotted_keys(root))
    if same := [dotted for dotted in everywhere if dotted.split(".")[-1] == key]:
        return f"did you mean {' or '.join(same)}?"
    return f"known keys there: {', '.join(known)}"


def _section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that the field `key` holds, directly or as the items of a tuple; None for a mapping, whose keys are not ours."""
    annotation = model.model_fields[key].annotation if key in model.model_fields else None
    if get_origin(annotation) is dict:
        return None
    return next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key in model.model_fields:
        yield f"{prefix}{key}"
        if (section := _section_of(model, key)) is not None:
            yield from _dotted_keys(section, f"{prefix}{key}.")
