"""What a folder lacks to be a model is said in one line; nothing is loaded."""

import json
import shutil
from pathlib import Path

import pytest

from rbft import artifacts
from rbft.doctor import check_model_folder
from rbft.errors import ModelError
from rbft.model_folder import require_model_folder
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def shard(folder: Path) -> None:
    """The folder's one weight file as two, with an index, as large models come."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_that_transformers_saved_is_whole(whole: Path) -> None:
    found = require_model_folder(whole)
    assert (found.model_type, found.num_shards) == ("qwen2_5_vl", 1)
    assert found.weight_bytes == (whole / "model.safetensors").stat().st_size
    check = check_model_folder(whole)
    assert check.status == "ok" and check.found.endswith(f"; model.fingerprint {artifacts.model_fingerprint(whole)}")


def test_a_sharded_model_is_whole_and_its_bytes_are_summed(folder: Path) -> None:
    shard(folder)
    found = require_model_folder(folder)
    assert found.num_shards == 2
    assert found.weight_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 weight files \(model-00002-of-00002.safetensors\)"):
        require_model_folder(folder)


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights \(model.safetensors"):
        require_model_folder(folder)
    check = check_model_folder(folder)
    assert (check.status, check.mend) == ("fail", "copy or download them")


def test_pickled_weights_are_not_taken_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        require_model_folder(folder)


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, -1])
def test_weights_cut_short_are_found_without_loading_them(folder: Path, kept_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept_bytes])
    with pytest.raises(ModelError, match=r"model.safetensors: .*copy it again"):
        require_model_folder(folder)


def test_a_git_lfs_pointer_is_called_one(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        require_model_folder(folder)


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (["config.json"], "has no config.json"),
        (["tokenizer.json", "vocab.json"], "has no tokenizer"),
        (["processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"], "has no processor configuration"),
        (["chat_template.jinja", "chat_template.json"], "has no chat template"),
    ],
)
def test_each_missing_part_is_named(folder: Path, removed: list[str], said: str) -> None:
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=said):
        require_model_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": 3}', "\x00"])
def test_a_broken_configuration_is_no_model(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        require_model_folder(folder)


def test_no_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        require_model_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        require_model_folder(tmp_path / "file")
