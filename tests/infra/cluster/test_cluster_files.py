"""The files that start clusters elsewhere, checked by Ray's own code and by shells; no cloud is reached."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "infra" / "kuberay"


def filled_in(name: str) -> dict[str, Any]:
    """A launcher file as a user fills it in."""
    text = (ROOT / name).read_text()
    for mark, value in {"ami-FILL-IN": "ami-12345678", "FILL-IN": "node.example"}.items():
        text = "\n".join(line.partition("  #")[0].replace(mark, value) for line in text.splitlines())
    config: dict[str, Any] = yaml.safe_load(text)
    return config


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with what the files refer to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".ssh/crescendo.pem", ".ssh/id_ed25519", ".ray/auth_token", ".crescendo/mlflow.env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def aws(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for EC2 and IAM in this process, with what docs/cluster.md has a user make."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        boto3.client("ec2", region_name="us-east-1").create_key_pair(KeyName="crescendo")
        iam = boto3.client("iam")
        for name in ("head", "worker"):
            iam.create_role(RoleName=f"crescendo-{name}", AssumeRolePolicyDocument="{}")
            policy = (ROOT / f"infra/aws/{name}-policy.json").read_text()
            iam.put_role_policy(RoleName=f"crescendo-{name}", PolicyName="crescendo", PolicyDocument=policy)
            iam.create_instance_profile(InstanceProfileName=f"crescendo-{name}")
        yield


def test_ray_starts_the_aws_cluster_as_far_as_ec2_says_yes(aws: None) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.commands import _bootstrap_config

    ready = _bootstrap_config(filled_in("ray_cluster.yaml"), no_config_cache=True)
    workers = ready["available_node_types"]["gpu"]
    assert workers["resources"]["GPU"] == 4
    assert workers["min_workers"] == 0
    nodes = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
    nodes.create_node(workers["node_config"], tags, 1)
    (node,) = nodes.non_terminated_nodes({"ray-user-node-type": "gpu"})
    made = nodes._get_cached_node(node)
    assert made.instance_type == "g6.12xlarge"
    assert made.iam_instance_profile["Arn"].endswith("crescendo-worker")
    assert {"Key": "ray-cluster-name", "Value": "crescendo"} in made.tags  # what head-policy.json lets it end


def test_ray_takes_the_file_of_a_machine_room(secrets: Path) -> None:
    from ray.autoscaler._private.commands import _bootstrap_config

    ready = _bootstrap_config(filled_in("infra/local_cluster.yaml"), no_config_cache=True)
    assert ready["provider"]["worker_ips"] == ["WORKER-node.example"]


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "infra/local_cluster.yaml"])
def test_every_command_is_one_that_a_shell_reads_and_holds_no_secret(name: str) -> None:
    config = filled_in(name)
    for key, commands in config.items():
        for line in commands if key.endswith("commands") else ():
            subprocess.run(["bash", "-n", "-c", line], check=True)
            assert "PASSWORD=" not in line
            assert "dashboard-host=0.0.0.0" not in line


@pytest.mark.parametrize("path", sorted((ROOT / "infra/aws").glob("*-policy.json")), ids=lambda path: path.stem)
def test_policies_change_only_what_is_the_clusters_own(path: Path) -> None:
    for statement in json.loads(path.read_text())["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if action == "*" or action.endswith(":*")]
        ends_or_passes = {"ec2:TerminateInstances", "ec2:StopInstances", "iam:PassRole"} & set(actions)
        assert not ends_or_passes or statement["Condition"]["StringEquals"]
        writes = [action for action in actions if action.startswith(("s3:Put", "s3:Delete"))]
        assert not writes or all(part.endswith(("/runs/*", "/mlflow/*")) for part in statement["Resource"])


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.stem}-{item['kind']}-{item['metadata']['name']}", item)
        for path in sorted(KUBERAY.glob("*.yaml"))
        for item in yaml.safe_load_all(path.read_text())
    ]


def test_rays_autoscaler_reads_the_kubernetes_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    cluster = next(item for _, item in manifests() if item["kind"] == "RayCluster")
    config = _derive_autoscaling_config_from_ray_cr(cluster | {"metadata": {"name": "crescendo", "namespace": "ml"}})
    validate_config(config)
    types = config["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["headgroup"]["resources"]["CPU"] == 0  # no training beside the controller


def containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from value.get("containers", ())
        for inner in value.values():
            yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


@pytest.mark.parametrize(("name", "item"), [pytest.param(*pair, id=pair[0]) for pair in manifests()])
def test_manifests_hold_no_secret_and_refer_to_those_that_the_example_makes(name: str, item: dict[str, Any]) -> None:
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


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's crd/bases")
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_kuberay_takes_the_manifest(kind: str) -> None:
    from jsonschema import Draft202012Validator

    crd = yaml.safe_load(Path(os.environ["KUBERAY_CRDS"], f"ray.io_{kind}s.yaml").read_text())
    schema = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")["schema"][
        "openAPIV3Schema"
    ]
    for name, item in manifests():
        if item["kind"].lower() == kind:
            assert [error.message for error in Draft202012Validator(strict(schema)).iter_errors(item)] == [], name


def strict(schema: Any) -> Any:
    """A schema in which an unknown field is an error, as kubectl has it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # What Kubernetes calls IntOrString is an `anyOf` beside a `type` that doesn't hold.
    inner = {key: strict(value) for key, value in schema.items()}
    closed = (
        "properties" in schema and isinstance(schema["properties"], dict) and not schema.get("additionalProperties")
    )
    return inner | ({"additionalProperties": False} if closed and schema.get("type") == "object" else {})


def test_s3_takes_the_rule_that_removes_unfinished_uploads(aws: None) -> None:
    import boto3

    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="crescendo")
    rules = json.loads((ROOT / "infra/aws/lifecycle.json").read_text())
    s3.put_bucket_lifecycle_configuration(Bucket="crescendo", LifecycleConfiguration=rules)
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket="crescendo")["Rules"]
    assert (rule["Status"], rule["AbortIncompleteMultipartUpload"]) == ("Enabled", {"DaysAfterInitiation": 1})
