"""`serve/config.yaml`: Serve's schema takes it, and the application that it names is the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from rbft.config import ServeConfig
from rbft.errors import ConfigError
from serve.application import Served, build
from serve.deployment import APPLICATION


@pytest.fixture(scope="module")
def schema(repository: Path) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load((repository / "serve/config.yaml").read_text()))


def options_of(served: Served) -> Any:
    return build(served)._bound_deployment._deployment_config


def served(repository: Path, *settings: str) -> Served:
    return Served(config=str(repository / "configs/miniature.yaml"), set=list(settings), model=str(repository / "miniature/model"))


def test_it_listens_where_and_as_long_as_the_configuration_would(schema: ServeDeploySchema) -> None:
    defaults = ServeConfig()
    assert (schema.http_options.host, schema.http_options.port) == (defaults.host, defaults.port)
    assert schema.http_options.request_timeout_s is not None
    assert schema.http_options.request_timeout_s > defaults.body_timeout_s + defaults.request_timeout_s


def test_it_names_the_application_and_arguments_that_the_builder_takes(schema: ServeDeploySchema) -> None:
    (application,) = schema.applications
    assert (application.name, application.route_prefix, application.import_path) == (APPLICATION, "/", "serve.application:build")
    assert Served.model_validate(application.args).config == "configs/miniature.yaml"
    with pytest.raises(ValidationError):
        Served.model_validate({**application.args, "modle": "x"})


def test_replicas_are_a_fixed_number_or_follow_the_load(repository: Path) -> None:
    fixed = options_of(served(repository, "serve.num_replicas=3"))
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)
    following = options_of(served(repository, "serve.min_replicas=2", "serve.max_replicas=5")).autoscaling_config
    assert (following.min_replicas, following.max_replicas, following.target_ongoing_requests) == (2, 5, 32)


def test_what_a_replica_has_begun_it_may_end_and_another_answers_first(repository: Path) -> None:
    options = options_of(served(repository, "serve.body_timeout_s=10", "serve.request_timeout_s=20.5"))
    assert options.graceful_shutdown_timeout_s >= 30.5
    assert options.max_surge_percent > 0
    assert options_of(served(repository, "serve.update_beside=false")).max_surge_percent == 0


def test_a_file_without_keys_and_bounds_out_of_order_are_refused(repository: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("")
    with pytest.raises(ConfigError, match="holds no key"):
        build(served(repository, f"serve.keys={keys}"))
    for settings, told in [
        (["serve.min_replicas=3", "serve.max_replicas=2"], "more than max_replicas"),
        (["serve.min_replicas=2"], "set max_replicas"),
        (["serve.num_replicas=2", "serve.max_replicas=3"], "remove one"),
    ]:
        with pytest.raises(ConfigError, match=told):
            build(served(repository, *settings))
