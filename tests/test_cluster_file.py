"""cluster.yaml, as the Ray cluster launcher reads it; no node is started."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config


@pytest.fixture
def cluster(repository: Path) -> dict[str, Any]:
    content = yaml.safe_load((repository / "cluster.yaml").read_text())
    assert isinstance(content, dict)
    return content


def test_the_cluster_file_passes_the_launchers_own_validation(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_that_validation_would_find_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(cluster))


def test_workers_are_nodes_of_eight_h100s_and_the_head_does_no_work(cluster: dict[str, Any]) -> None:
    head, worker = (cluster["available_node_types"][name] for name in ("head", "h100x8"))
    assert cluster["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert worker["resources"] == {"CPU": 192, "GPU": 8, "accelerator_type:H100": 1}
    assert worker["node_config"]["InstanceType"] == "p5.48xlarge"
    assert worker["max_workers"] == cluster["max_workers"]


def test_a_worker_has_one_efa_on_each_of_its_32_network_cards(cluster: dict[str, Any]) -> None:
    interfaces = cluster["available_node_types"]["h100x8"]["node_config"]["NetworkInterfaces"]
    assert [interface["NetworkCardIndex"] for interface in interfaces] == list(range(32))
    assert [interface["InterfaceType"] for interface in interfaces] == ["efa"] + ["efa-only"] * 31
    assert len({(interface["SubnetId"], *interface["Groups"]) for interface in interfaces}) == 1


def test_every_ray_process_wants_the_token_that_every_node_gets(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [line for key in ("head", "worker") for line in cluster[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line.split("ray start")[0] for line in starts)
    # The dashboard takes jobs: it is reached through SSH (`ray dashboard`), not from the network.
    assert "--dashboard-host=127.0.0.1" in starts[0]
