"""`ray up` over SSH to hosts of our own: a job on two nodes, one of them cut off, the job done, `ray down`."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.devstack.server import BIN
from tests.support.hosts import Hosts, missing
from tests.support.shards import write_shards

ROOT = Path(__file__).parents[3]
HEAD, WORKER = 1, 2


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """A laptop, a head and a worker."""
    if problem := missing():
        pytest.skip(problem)
    hosts = Hosts(3)
    token = secrets.token_hex(32)
    for number in range(3):
        home = hosts.home(number)
        (home / "crescendo").mkdir()
        # In place of an installation of 6 GB each.
        (home / "crescendo" / ".venv").symlink_to(ROOT / ".venv")
    for name in (".ray", ".crescendo"):
        (hosts.home(0) / name).mkdir()
    (hosts.home(0) / ".ray" / "auth_token").write_text(token)
    environment = {
        # A cut cable is noticed after three seconds instead of after up to fifty.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",  # all hosts have this machine's name
    }
    lines = "".join(f"{name}={value}\n" for name, value in environment.items())
    (hosts.home(0) / ".crescendo" / "cluster.env").write_text(lines)
    yield hosts
    hosts.close()


def cluster_file(hosts: Hosts) -> Path:
    """infra/local_cluster.yaml, filled in."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "local_cluster.yaml").read_text())
    config["provider"] |= {"head_ip": hosts.address(HEAD), "worker_ips": [hosts.address(WORKER)]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.folder / "key")}
    config["file_mounts"] = {
        far: str(ROOT / near) if near.startswith("./") else near for far, near in config["file_mounts"].items()
    }
    config["setup_commands"] = [line for line in config["setup_commands"] if "pip install" not in line]
    assert len(config["setup_commands"]) == 2
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        config[f"{kind}_start_ray_commands"] = [
            line.replace("ray start", "ray start --num-cpus=1 --object-store-memory=100000000").replace(
                "HEAD-FILL-IN", hosts.address(HEAD)
            )
            for line in commands
        ]
    path = hosts.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def on_laptop(hosts: Hosts, *command: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return subprocess.Popen(
        hosts.command(0, *command),
        cwd=ROOT,
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    text = process.communicate(timeout=400)[0]
    assert process.returncode == 0, text
    return text


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_outlives_the_loss_of_a_node(hosts: Hosts) -> None:
    ray, config = str(BIN / "ray"), str(cluster_file(hosts))
    write_shards(hosts.folder / "data" / "train", [60, 60])
    write_shards(hosts.folder / "data" / "val", [24])
    output(on_laptop(hosts, ray, "up", "--yes", "--no-config-cache", config))
    deadline = time.monotonic() + 240
    while "2.0 CPU" not in (said := output(on_laptop(hosts, ray, "exec", config, ". ~/.profile; ray status"))):
        if time.monotonic() > deadline:
            see = "tail -n 60 /tmp/ray/session_latest/logs/monitor*"
            pytest.fail(said + output(on_laptop(hosts, ray, "exec", config, see)))
        time.sleep(5)
    run = submit(hosts, config)
    log = []
    for line in run.stdout or ():
        log.append(line)
        if "| epoch" in line:
            break
    assert any("1 to 2 workers" in line for line in log), "".join(log)
    hosts.cut(WORKER)
    log.append(run.communicate(timeout=400)[0])
    assert run.returncode == 0, "".join(log)
    assert "recovered 1x" in "".join(log), "".join(log)
    output(on_laptop(hosts, ray, "down", "--yes", config))
    print("".join(log))  # what docs/cluster.md shows
    assert list((hosts.folder / "runs" / "cut" / "checkpoints").iterdir())


def submit(hosts: Hosts, config: str) -> subprocess.Popen[str]:
    """`jobs.submit` through the launcher's own tunnel to the dashboard."""
    folder = hosts.folder
    tracking = ["--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--tracking.system-metrics", "False"]
    places = ["--data.train", f"{folder}/data/train", "--data.val", f"{folder}/data/val", "--storage", f"{folder}/runs"]
    small = [f"--stages.{stage}.{flag}" for stage in range(4) for flag in ("epochs=60", "image_size=32")]
    pace = ["--trainer.log-every", "1", "--checkpoint.every-epochs", "1", "--cluster.num-workers", "1", "2"]
    job = [sys.executable, "-m", "jobs.submit", "demo_scratch", "--name", "cut", *places, *tracking, *small, *pace]
    tunnel = f'{BIN / "ray"} dashboard {config} > {folder}/tunnel.log 2>&1 & sleep 8; exec "$@"'
    return on_laptop(hosts, "sh", "-c", tunnel, "sh", *job)
