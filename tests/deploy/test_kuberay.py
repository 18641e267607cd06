"""`deploy/kuberay/` by KubeRay's schemas, by Ray's own reading of a RayCluster and of a Serve configuration, and by our rules."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from ray_jobs.cli import register
from rbft import __version__
from rbft.config import load_config
from serve.application import Served
from tests.deploy.kubernetes import documents, problems, schema

ROOT = Path(__file__).resolve().parents[2]
FOLDER, CONFIGS = ROOT / "deploy" / "kuberay", ROOT / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
RAY_KINDS = ("RayCluster", "RayJob", "RayService")


def _all() -> list[dict[str, Any]]:
    return [document for path in FILES for document in documents(path)]


def _of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in _all() if document["kind"] == kind]


def _clusters() -> list[dict[str, Any]]:
    """The RayCluster and that of the service."""
    return [each["spec"] for each in _of_kind("RayCluster")] + [each["spec"]["rayClusterConfig"] for each in _of_kind("RayService")]


def _groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _pods() -> list[dict[str, Any]]:
    """The pod templates of everything."""
    pods = [group["template"] for cluster in _clusters() for group in _groups(cluster)]
    return pods + [job["spec"]["submitterPodTemplate"] for job in _of_kind("RayJob")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_manifest_is_what_kuberays_schema_allows(path: Path) -> None:
    for document in documents(path):
        assert document["metadata"].get("namespace", "rbft") == "rbft"
        if document["kind"] in RAY_KINDS:
            assert problems(document) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda spec: spec.update(rayVerison="2.60.0"), "$.spec"),
        (lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="2"), "$.spec.workerGroupSpecs[0].maxReplicas"),
        (lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"), "template.spec.containers[0]"),
        (lambda spec: spec["authOptions"].update(mode="tokens"), "$.spec.authOptions.mode"),
    ],
    ids=["unknown field", "wrong type", "missing field", "unknown value"],
)
def test_that_check_would_find(change: Any, where: str) -> None:
    (cluster,) = _of_kind("RayCluster")
    change(cluster["spec"])
    found = problems(cluster)
    assert len(found) == 1 and where in found[0]


def test_network_policies_have_rules_that_kubernetes_knows() -> None:
    # The schema of a RayCluster has those of a NetworkPolicy within it.
    inner = schema("RayCluster")["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    policies = _of_kind("NetworkPolicy")
    assert len(policies) == 4
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress"]  # a pod that a policy selects is closed but for what one allows
        assert problems(policy["spec"]["ingress"], inner["ingressRules"]) == []
        assert all(rule["from"] for rule in policy["spec"]["ingress"])  # without, it would be everybody


def test_every_pod_of_ray_is_behind_a_network_policy() -> None:
    for cluster in _clusters():
        for group in _groups(cluster):
            assert group["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rbft"


def test_rays_autoscaler_understands_the_cluster() -> None:
    (cluster,) = _of_kind("RayCluster")
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    resources = {name: node_type["resources"] for name, node_type in config["available_node_types"].items()}
    assert resources["headgroup"]["CPU"] == 0
    for group, kind in (("training", "on_demand"), ("generation", "spot")):
        assert {name: resources[group].get(name) for name in ("CPU", "GPU", kind)} == {"CPU": 180, "GPU": 8, kind: 8}
    assert config["idle_timeout_minutes"] == 30


def test_tokens_are_on_and_come_from_a_secret() -> None:
    for cluster in _clusters():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "rbft-ray-token"}
    assert _of_kind("Secret") == []  # a secret in a file would be in git


def test_no_pod_is_root_or_can_become_it_or_has_a_token_of_kubernetes_that_it_does_not_need() -> None:
    scaling = [cluster["headGroupSpec"]["template"] for cluster in _clusters() if cluster.get("enableInTreeAutoscaling")]
    assert len(scaling) == 2  # these heads ask Kubernetes for pods
    for pod in _pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert spec.get("automountServiceAccountToken", True) is (pod in scaling)
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))


def test_versions_and_the_image_are_one_and_the_same_everywhere() -> None:
    assert {str(cluster["rayVersion"]) for cluster in _clusters()} == {ray.__version__}
    images = {container["image"] for pod in _pods() for container in pod["spec"]["containers"]}
    assert images == {f"registry.example.com/rbft:{__version__}"}


def test_there_is_a_rayjob_for_each_job_on_the_cluster_that_stays() -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="verb"))
    jobs = {path.stem: documents(path)[0] for path in sorted((FOLDER / "jobs").glob("*.yaml"))}
    assert set(jobs) == {"generate", "train", "evaluate", "pipeline", "reproduce"}
    for name, job in jobs.items():
        program, *arguments = shlex.split(job["spec"]["entrypoint"])
        assert program == "rbft" and arguments[0] == name
        parsed = parser.parse_args(arguments)  # ends the process if the command is none of ours
        (config,) = [parsed.config] if isinstance(parsed.config, str) else parsed.config
        run = load_config(CONFIGS / Path(config).name, parsed.overrides)
        assert name == "train" or run.engine.resources == {"spot": 1}
        assert name in ("generate", "evaluate") or run.training.resources == {"on_demand": 1}
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "rbft"}
        assert job["metadata"]["generateName"] == f"rbft-{name}-"  # so that the same file can be submitted again


def test_the_service_has_a_configuration_that_ray_serve_takes() -> None:
    (service,) = _of_kind("RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert (application.name, application.route_prefix, config.http_options.port) == ("rbft", "/", 8000)
    served = Served.model_validate(application.args)
    run = load_config(CONFIGS / Path(served.config).name, served.set)
    assert run.serve.host == config.http_options.host


def test_the_service_has_pods_for_as_many_replicas_as_it_may_have() -> None:
    (service,) = _of_kind("RayService")
    cluster = service["spec"]["rayClusterConfig"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])).applications
    served = Served.model_validate(application.args)
    run = load_config(CONFIGS / Path(served.config).name, served.set)
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]  # or the pods stay as many as there were at first
    (group,) = cluster["workerGroupSpecs"]
    config = _derive_autoscaling_config_from_ray_cr({"metadata": service["metadata"], "spec": cluster})
    offered, engine = config["available_node_types"]["engines"]["resources"], run.engine
    replicas_a_pod = min(offered["CPU"] // engine.num_cpus, offered["GPU"] // engine.num_gpus)
    assert replicas_a_pod * group["minReplicas"] == run.serve.min_replicas == group["replicas"]
    assert replicas_a_pod * group["maxReplicas"] == run.serve.max_replicas


def test_the_service_is_open_to_others_with_keys_only() -> None:
    (service,) = _of_kind("RayService")
    settings = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["set"]
    (keys,) = [value for name, _, value in (each.partition("=") for each in settings) if name == "serve.keys"]
    for group in _groups(service["spec"]["rayClusterConfig"]):
        spec = group["template"]["spec"]
        mount = next(each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "keys")
        assert keys.startswith(mount["mountPath"]) and mount["readOnly"]
