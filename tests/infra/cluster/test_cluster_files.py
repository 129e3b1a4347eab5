"""The launcher files, checked by Ray's own code and by shells; no cloud is reached."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


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


def test_s3_takes_the_rule_that_removes_unfinished_uploads(aws: None) -> None:
    import boto3

    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="crescendo")
    rules = json.loads((ROOT / "infra/aws/lifecycle.json").read_text())
    s3.put_bucket_lifecycle_configuration(Bucket="crescendo", LifecycleConfiguration=rules)
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket="crescendo")["Rules"]
    assert (rule["Status"], rule["AbortIncompleteMultipartUpload"]) == ("Enabled", {"DaysAfterInitiation": 1})
