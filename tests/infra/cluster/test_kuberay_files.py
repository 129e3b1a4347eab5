"""The manifests for Kubernetes, held against KubeRay's schemas and rules, Kueue's rules, and each other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from infra.spot_watch import METADATA
from jobs.common.cli import parse_recipe
from pipeline.run.shared_memory import shared_memory_bytes
from tests.support.kuberay import KINDS, schema

KUBERAY = Path(__file__).parents[3] / "infra" / "kuberay"
Manifest = dict[str, Any]
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}


def parsed(text: str) -> list[Manifest]:
    return list(yaml.safe_load_all(text))


def manifests() -> list[tuple[str, Manifest]]:
    return [
        (f"{path.stem}-{item['kind']}-{item['metadata']['name']}", item)
        for path in sorted(KUBERAY.glob("*.yaml"))
        for item in parsed(path.read_text())
    ]


def queued() -> Manifest:
    """rayjob.yaml with the line that hands it to Kueue."""
    text, count = re.subn(r"# (labels: {kueue)", r"\1", (KUBERAY / "rayjob.yaml").read_text())
    assert count == 1
    return parsed(text)[0]


def only(kind: str) -> Manifest:
    (found,) = [item for _, item in manifests() if item["kind"] == kind]
    return found


def cluster_specs() -> dict[str, Manifest]:
    return {"RayCluster": only("RayCluster")["spec"], "RayJob": only("RayJob")["spec"]["rayClusterSpec"]}


def amount(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


OURS = [pytest.param(item, id=name) for name, item in manifests()]
CUSTOM = [param for param in OURS if param.values[0]["kind"] in KINDS] + [pytest.param(queued(), id="queued-RayJob")]


@pytest.mark.parametrize("item", CUSTOM)
def test_kuberay_takes_the_manifest(item: Manifest) -> None:
    validator = Draft202012Validator(schema(item["kind"]))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(item)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "backOffLimit"], 3),
        (["spec", "backoffLimit"], "three"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "terminationGraceSeconds"], 5),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0, "emptyDirs"], {}),
        (["spec", "submitterPodTemplate", "spec", "containers", 0, "resources", "request"], {}),
    ],
)
def test_the_schemas_find_a_slip_of_the_pen(path: list[Any], value: object) -> None:
    item = only("RayJob")
    place = item
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert list(Draft202012Validator(schema("RayJob")).iter_errors(item)) != []


def test_a_lost_head_is_a_new_cluster_by_kuberays_rules() -> None:
    """As its `ValidateRayJobSpec` and `ValidateRayJobMetadata` have it, and `shouldSkipHeadPodRestart`."""
    job = only("RayJob")
    spec, name = job["spec"], job["metadata"]["name"]
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert spec["backoffLimit"] > 0
    assert "clusterSelector" not in spec
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert job["metadata"]["annotations"]["ray.io/disable-provisioned-head-restart"] == "true"
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert all({"minReplicas", "maxReplicas"} <= group.keys() for group in cluster["workerGroupSpecs"])
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert "activeDeadlineSeconds" not in spec  # a run that takes longer would not be tried again


def test_kueue_takes_the_job() -> None:
    """As its webhook for RayJobs has it; `suspend` is Kueue's own to set."""
    job = queued()
    assert job["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}
    assert "suspend" not in job["spec"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    cluster = job["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    assert len(cluster["workerGroupSpecs"]) <= 16
    for container in containers(job):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_the_jobs_command_is_one_that_the_recipe_takes_and_fits_its_pods() -> None:
    spec = only("RayJob")["spec"]
    _, _, module, *argv = shlex.split(spec["entrypoint"])
    assert module == "jobs.train"
    config, _ = parse_recipe(argv, prog="test")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    ranks = int(asked["nvidia.com/gpu"])
    assert ranks * config.cluster.cpus_per_worker <= amount(asked["cpu"])
    assert max(config.worker_counts) == ranks * group["maxReplicas"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in group["template"]["spec"]["volumes"]}
    store = float(group["rayStartParams"]["object-store-memory"])
    assert shared_memory_bytes(config, ranks) + store <= amount(volumes["shm"]["sizeLimit"])
    assert config.data.cache_gb * 1e9 <= amount(volumes["cache"]["sizeLimit"])
    assert amount(volumes["cache"]["sizeLimit"]) < amount(asked["ephemeral-storage"])
    assert amount(volumes["shm"]["sizeLimit"]) < amount(asked["memory"]) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_pod_is_a_node_and_has_time_for_a_checkpoint(kind: str) -> None:
    for group in cluster_specs()[kind]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 1
        command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert command.startswith('python -m infra.spot_watch --address "$RAY_ADDRESS" --now ')
        assert METADATA not in command
        assert pod["terminationGracePeriodSeconds"] >= int(command.split()[-1]) + 15


def test_the_jobs_pods_are_those_of_the_standing_cluster() -> None:
    one, other = (_without_own(spec) for spec in cluster_specs().values())
    for group in ("headGroupSpec", "workerGroupSpecs"):
        assert one[group] == other[group]


def _without_own(spec: Manifest) -> Manifest:
    """What may differ is left out: labels, replicas, and what becomes of a head."""
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    for group in (head, workers):
        group["template"].pop("metadata")
        for name in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(name, None)
        for name in ("restartPolicy", "automountServiceAccountToken"):
            group["template"]["spec"].pop(name, None)
    return {"headGroupSpec": head, "workerGroupSpecs": workers}


def test_budgets_hold_the_heads_of_this_directory_and_have_the_form_that_custom_resources_need() -> None:
    heads = {
        spec["headGroupSpec"]["template"]["metadata"]["labels"]["crescendo/cluster"]
        for spec in cluster_specs().values()
    }
    budgets = [item["spec"] for _, item in manifests() if item["kind"] == "PodDisruptionBudget"]
    assert {budget["selector"]["matchLabels"]["crescendo/cluster"] for budget in budgets} == heads
    for budget in budgets:
        assert budget["minAvailable"] == 1
        assert "maxUnavailable" not in budget
        assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "head"


def test_the_monitor_scrapes_ports_that_the_pods_have() -> None:
    asked = {endpoint["port"] for endpoint in only("PodMonitor")["spec"]["podMetricsEndpoints"]}
    for spec in cluster_specs().values():
        (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
        assert asked <= {port["name"] for port in head["ports"]}
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
            assert ports["metrics"] == group["rayStartParams"]["metrics-export-port"]


def test_rays_autoscaler_reads_the_kubernetes_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    cluster = only("RayCluster") | {"metadata": {"name": "crescendo", "namespace": "ml"}}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    types = config["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] == 4
    assert types["headgroup"]["resources"]["CPU"] == 0  # no training beside the controller


def containers(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        yield from value.get("containers", ())
        for inner in value.values():
            yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


@pytest.mark.parametrize("item", OURS)
def test_manifests_hold_no_secret_and_refer_to_those_that_the_example_makes(item: Manifest) -> None:
    if item["kind"] == "Secret":
        return
    made = {
        secret["metadata"]["name"]: set(secret["stringData"]) for _, secret in manifests() if "stringData" in secret
    }
    for container in containers(item):
        for variable in container.get("env", ()):
            assert "PASSWORD" not in variable["name"] or "value" not in variable
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] in made[reference["name"]]
        for source in container.get("envFrom", ()):
            assert source["secretRef"]["name"] in made


@pytest.mark.parametrize("item", OURS)
def test_every_container_is_locked(item: Manifest) -> None:
    for container in containers(item):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
