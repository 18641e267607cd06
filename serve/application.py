"""The application that `serve deploy` and `serve run` build: `serve.application:build`. `serve/config.yaml` names it."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from rbft.config import load_config
from serve.deployment import make_application, open_video_classifier
from serve.model import find_model, require_keys


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
    """Raises what `load_config` and `find_model` do, which Serve tells as the application's status."""
    config = load_config(args.config, args.set)
    require_keys(config)
    return make_application(config, partial(open_video_classifier, config, find_model(config, args.model)))
