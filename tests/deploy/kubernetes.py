"""What the API server would say to a manifest: KubeRay's schemas, with unknown fields refused."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parent / "kuberay-1.7.0"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@cache
def schema(kind: str) -> dict[str, Any]:
    """Of `kind`, e.g. "RayCluster". The rules in CEL (`x-kubernetes-validations`) and the formats of quantities are not looked at."""
    content = json.loads(gzip.decompress((SCHEMAS / f"{kind.lower()}s.json.gz").read_bytes()))
    closed = _closed(content)
    assert isinstance(closed, dict)
    return closed


def problems(manifest: dict[str, Any], of: dict[str, Any] | None = None) -> list[str]:
    """Path and message of everything in `manifest` that its kind's schema, or `of`, does not allow."""
    errors = Draft202012Validator(of or schema(manifest["kind"])).iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def _closed(node: Any) -> Any:
    """`node` with every object that lists its fields closed to others: the API server would drop those without a word."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    # Below `properties` keys are names of fields, not words of the schema.
    closed = {
        key: {name: _closed(each) for name, each in value.items()} if key == "properties" else _closed(value) for key, value in node.items()
    }
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
