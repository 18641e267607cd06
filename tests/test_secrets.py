"""Secrets stay out of configurations, run folders and messages; models are read as safetensors, and never as code."""

import ast
import re
from pathlib import Path

import pytest

from ray_jobs.ray_runtime import require_token_authentication
from ray_jobs.run import Run
from rbft.config import load_config
from rbft.errors import ConfigError, JobError
from tests.tiny_models import make_tiny_model

PACKAGES = ("rbft", "ray_jobs", "serve", "miniature")
SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("override", "place"),
    [
        (f"output_dir=s3://AKIA:{SECRET}@bucket/runs", "output_dir has a user or key before its @"),
        (f"data.manifest=https://host/manifest.parquet?X-Amz-Signature={SECRET}", "data.manifest has a key or signature behind its ?"),
        (f"model.path=s3://bucket/model?secret_key={SECRET}&region=x", "model.path has a key or signature behind its ?"),
        (
            "teacher.server={url: http://127.0.0.1:9/v1, model: m, extra_body: {api_key: " + SECRET + "}}",
            "teacher.server.extra_body.api_key looks like a secret",
        ),
        (
            "teacher.server={url: http://127.0.0.1:9/v1, model: m, extra_body: {headers: {Authorization: " + SECRET + "}}}",
            "teacher.server.extra_body.headers.Authorization looks like a secret",
        ),
    ],
)
def test_a_configuration_with_a_secret_is_refused_by_its_place_and_the_message_does_not_repeat_it(
    repository: Path, override: str, place: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(repository / "configs/miniature.yaml", [override])
    assert place in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=s3://bucket/runs?region=us-west-2&endpoint_override=http://127.0.0.1:9000&scheme=http",
        "teacher.server={url: http://127.0.0.1:9/v1, model: m, api_key_env: TEACHER_KEY, extra_body: {max_completion_tokens: 9}}",
        "task.persona=a person who writes to me@example.com about https://example.com and tokens",
    ],
)
def test_what_is_no_secret_is_taken(repository: Path, override: str) -> None:
    load_config(repository / "configs/miniature.yaml", [override])


def test_no_value_of_a_secret_in_the_environment_gets_into_a_runs_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TEACHER_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    model = make_tiny_model(tmp_path / "model")
    server = "teacher.server={url: http://127.0.0.1:9/v1, model: m, api_key_env: TEACHER_KEY}"
    config = load_config(repository / "configs/miniature.yaml", [f"output_dir={tmp_path / 'runs'}", f"model.path={model}", server])
    run = Run(config)
    files = [path for path in Path(run.layout.root).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "run.json"}
    assert any("TEACHER_KEY" in path.read_text() for path in files)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize("mode", ["disabled", "Disabled", "none"])
def test_no_ray_is_started_without_token_authentication(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(JobError, match="unset RAY_AUTH_MODE"):
        require_token_authentication()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    require_token_authentication()
    monkeypatch.delenv("RAY_AUTH_MODE")
    require_token_authentication()


def _sources() -> dict[Path, str]:
    root = Path(__file__).resolve().parent.parent
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    paths += [path for folder in ("configs", "deploy") for path in (root / folder).rglob("*") if path.is_file()]
    return {path: path.read_text(encoding="utf-8") for path in [*paths, root / "cluster.yaml"]}


def test_nothing_runs_code_that_comes_with_a_model() -> None:
    # Off is the default of transformers and vLLM alike, so that no mention is the safest there is.
    assert [path for path, text in _sources().items() if re.search("trust.?remote.?code", text, re.IGNORECASE)] == []


def test_models_are_loaded_from_safetensors_only() -> None:
    loads = [
        (path, node)
        for path, text in _sources().items()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
        if isinstance(node.func.value, ast.Name) and node.func.value.id.startswith("AutoModel")
    ]
    assert len(loads) >= 2
    for path, load in loads:
        given = {keyword.arg: keyword.value for keyword in load.keywords}
        value = given.get("use_safetensors")
        assert isinstance(value, ast.Constant) and value.value is True, f"{path.name}:{load.lineno}"
