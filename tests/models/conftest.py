"""Tiny models of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.tiny_models import Kind, make_tiny_model


@pytest.fixture(scope="session", params=get_args(Kind))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, once of each kind."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
