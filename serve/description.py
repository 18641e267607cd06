"""What FastAPI does not know of the routes when it writes /openapi.json: forms are multipart, or may come as JSON."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve.upload import FORM, JSON

_URL_ENCODED = "application/x-www-form-urlencoded"
"""As which FastAPI describes forms that have no file; ours are multipart all the same."""
_EXAMPLES = {"url": "https://clips.example.org/door.mp4", "video_id": "mX3l0kQ2n8sT5vB9wZ1cR4yH"}


def describe_json(app: FastAPI) -> None:
    """Have the description of `app` say, of each route that takes a form, that JSON with the same fields but the file will do."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = describe()
            for path in description["paths"].values():
                _add_json(path.get("post", {}).get("requestBody", {}).get("content", {}), description["components"]["schemas"])
        return describe()

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way of extending it


def _add_json(content: dict[str, Any], schemas: dict[str, Any]) -> None:
    form = content.pop(_URL_ENCODED, None) or content.get(FORM)
    if form is None:
        return
    content[FORM] = form
    schema = schemas[form["schema"]["$ref"].rpartition("/")[2]]
    fields = {name: field for name, field in schema["properties"].items() if name != "video"}
    required = [name for name in schema.get("required", []) if name in fields]
    example = next(({name: value} for name, value in _EXAMPLES.items() if name in fields), None)
    if example is None:  # files alone
        return
    content[JSON] = {
        "schema": {"type": "object", "properties": fields} | ({"required": required} if required else {}),
        "example": example,
    }
