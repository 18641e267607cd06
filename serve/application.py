"""The application that `serve deploy` and `serve run` build: `serve.application:build`. `serve/config.yaml` names it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from rbft.config import load_config
from serve.deployment import video_application
from serve.model import what_to_serve


class Served(BaseModel):
    """What is served: the `args` of the application."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    config: str
    """The YAML of the run whose model answers."""
    set: list[str] = Field(default_factory=list)
    """Overrides of single values of it, as `a.b=c`."""
    model: str | None = None
    """The model folder to serve instead of the run's `serve.system`."""


def build(args: Served) -> Application:
    """Raises what `load_config` and `what_to_serve` do, which Serve tells as the application's status."""
    return video_application(*what_to_serve(load_config(args.config, args.set), args.model))
