"""Model folders and the card in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbft.errors import ModelError
from rbft.models.load import TASK_CARD, load_model, make_card, read_card
from tests.samples import SPEC, TASK


def test_a_card_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    (tmp_path / TASK_CARD).write_text(json.dumps(make_card(TASK, SPEC, {"run": "r"})))
    assert read_card(tmp_path) == (TASK, SPEC, {"run": "r"})


def test_a_folder_without_a_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path}/rbft.json: no task card can be read"):
        read_card(tmp_path)


def test_a_card_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / TASK_CARD).write_text(json.dumps(make_card(TASK, SPEC, {}) | {"schema_version": 99}))
    with pytest.raises(ModelError, match="schema version 99, this code reads 1"):
        read_card(tmp_path)


def test_a_folder_without_weights_is_named(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model(tmp_path, "float32")
