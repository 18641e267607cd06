"""`cluster.yaml` by the cluster launcher's own validation, and by our rules: no open port, token authentication, pinned packages."""

import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_jobs.working_tree import JUNK, SECRETS
from rbft.model_store import CACHE_VARIABLE


@pytest.fixture
def cluster(repository: Path) -> dict[str, Any]:
    content = yaml.safe_load((repository / "cluster.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _node_configs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """As the launcher has them: with the subnets and groups of network interfaces, which it refuses to find in two places."""
    types = _configure_from_network_interfaces(cluster)["available_node_types"]
    return {name: node_type["node_config"] for name, node_type in types.items()}


def _starts(cluster: dict[str, Any]) -> list[str]:
    return [line for key in ("head", "worker") for line in cluster[f"{key}_start_ray_commands"] if "ray start" in line]


def test_the_cluster_file_passes_the_launchers_own_validation(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_that_validation_would_find_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(cluster))


def test_aws_would_understand_what_each_node_is_started_with(cluster: dict[str, Any]) -> None:
    request = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, config in _node_configs(cluster).items():
        asked = {key: value for key, value in config.items() if key not in ("SubnetIds", "SecurityGroupIds")}  # as the launcher sends it
        report = ParamValidator().validate({**asked, "MinCount": 1, "MaxCount": 1}, request)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_head_does_no_work_and_workers_are_nodes_of_eight_h100s(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    h100s = {"CPU": 192, "GPU": 8, "accelerator_type:H100": 1}
    assert types["training"]["resources"] == {**h100s, "on_demand": 8}
    assert types["generation"]["resources"] == {**h100s, "spot": 8}
    workers = [types["training"], types["generation"]]
    assert {worker["node_config"]["InstanceType"] for worker in workers} == {"p5.48xlarge"}
    assert sum(worker["max_workers"] for worker in workers) == cluster["max_workers"]
    assert all(worker["min_workers"] == 0 for worker in workers)  # nothing is paid for while nothing runs


def test_generation_is_on_spot_nodes_and_training_is_not(cluster: dict[str, Any]) -> None:
    configs = _node_configs(cluster)
    assert configs["generation"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in configs["training"]
    assert "InstanceMarketOptions" not in configs["head"]


@pytest.mark.parametrize("document", ["README.md", "cluster.yaml", "docs/cluster.md"])
def test_the_commands_to_copy_put_rationales_on_spot_nodes_and_training_on_others(
    document: str, cluster: dict[str, Any], repository: Path
) -> None:
    told = set(re.findall(r"--set (engine|training)\.resources='\{(\w+): 1\}'", (repository / document).read_text()))
    assert told == {("engine", "spot"), ("training", "on_demand")}
    types = cluster["available_node_types"]
    assert "spot" in types["generation"]["resources"] and "on_demand" in types["training"]["resources"]


def test_a_training_node_has_one_efa_on_each_of_its_32_network_cards(cluster: dict[str, Any]) -> None:
    interfaces = cluster["available_node_types"]["training"]["node_config"]["NetworkInterfaces"]
    assert [interface["NetworkCardIndex"] for interface in interfaces] == list(range(32))
    assert [interface["InterfaceType"] for interface in interfaces] == ["efa"] + ["efa-only"] * 31


def test_no_port_is_open_to_the_world(cluster: dict[str, Any], repository: Path) -> None:
    # Where a node type has no group of its own, the launcher makes one with SSH open to every address, and a role with all rights.
    configs = _node_configs(cluster)
    assert len({tuple(set(config["SecurityGroupIds"])) for config in configs.values()}) == 1
    assert len({tuple(set(config["SubnetIds"])) for config in configs.values()}) == 1
    assert all("IamInstanceProfile" in config for config in configs.values())
    assert all(config["MetadataOptions"]["HttpTokens"] == "required" for config in configs.values())
    assert "security_group" not in cluster["provider"]
    assert cluster["provider"]["use_internal_ips"]
    text = (repository / "cluster.yaml").read_text()
    assert "0.0.0.0" not in text and "::/0" not in text and "AssociatePublicIpAddress" not in text


def test_every_ray_process_wants_the_token_that_every_node_gets(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    head, worker = _starts(cluster)
    assert all("RAY_AUTH_MODE=token" in line.split("ray start")[0] for line in (head, worker))
    # The dashboard takes jobs: it is reached through SSH (`ray dashboard`), not from the network.
    assert "--dashboard-host=127.0.0.1" in head


def test_what_may_be_secret_or_is_nobodys_work_is_not_copied_to_nodes(cluster: dict[str, Any]) -> None:
    assert set(cluster["rsync_exclude"]) == {*JUNK, *SECRETS} - {"auth_token"}  # that is copied, from the home folder


def test_what_a_worker_fetches_lies_on_its_own_disks(cluster: dict[str, Any]) -> None:
    _, worker = _starts(cluster)
    for variable in (CACHE_VARIABLE, "TMPDIR"):
        assert f" {variable}=/opt/dlami/nvme/rbft/" in worker.split("ray start")[0]


def test_what_nodes_install_is_pinned(cluster: dict[str, Any]) -> None:
    keys = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    commands = [line for key in keys for line in cluster.get(key, [])]
    assert "cd ~/rb-ft && scripts/setup.sh gpu" in commands  # which installs by constraints.txt
    installs = [line for line in commands if "pip install" in line]
    assert all("--constraint ~/rb-ft/constraints.txt" in line for line in installs)


def test_nodes_share_the_folder_that_the_recipes_name(cluster: dict[str, Any], repository: Path) -> None:
    mounts = [line for line in cluster["setup_commands"] if "mount -t" in line]
    assert len(mounts) == 1
    shared = mounts[0].split()[-1]
    recipe = yaml.safe_load((repository / "configs" / "smarthome-qwen2.5-vl-7b.yaml").read_text())
    assert all(path.startswith(f"{shared}/") for path in (recipe["output_dir"], recipe["model"]["path"], recipe["data"]["smarthome"]))
