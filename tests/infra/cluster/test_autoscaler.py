"""Nodes that are asked for ahead, of Ray's own autoscaler over a cloud that is played."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.devstack.server import BIN, free_ports, is_free

ROOT = Path(__file__).resolve().parents[3]
ASK = """
import sys
import ray
from infra.cluster.config import ClusterConfig
from pipeline.schedule.stages import Segment
from pipeline.run.launch import ask_nodes

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
ask_nodes(ClusterConfig(num_workers=1), "mine", Segment(1, 2, (3, 4)), 1)  # one of the three is there
input("asked")
"""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head without CPUs, with an autoscaler that may start up to four nodes of one CPU each."""
    folder = Path(tempfile.mkdtemp(prefix="ray-scale-"))
    kind = {"node_config": {}, "min_workers": 0}
    config = {
        "cluster_name": "scale",
        "max_workers": 4,
        "provider": {"type": "fake_multinode"},
        "available_node_types": {
            "worker": kind | {"resources": {"CPU": 1}, "max_workers": 4},
            "ray.head.default": kind | {"resources": {"CPU": 0}, "max_workers": 0},
        },
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 60,
        "upscaling_speed": 4,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    (folder / "autoscaler.json").write_text(json.dumps(config))
    port = free_ports(1)
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder}"),
        *("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
        *("--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"),
        f"--autoscaling-config={folder}/autoscaler.json",
    ]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with (folder / "output").open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    while is_free(port):
        assert head.poll() is None, (folder / "output").read_text()
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    family += [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
def test_the_autoscaler_is_asked_for_the_nodes_that_a_stage_lacks(address: str) -> None:
    command = [sys.executable, "-c", ASK, address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(5) == "asked"
        deadline, said = time.monotonic() + 60, ""
        while "{'CPU': 1.0}: 2 from request_resources()" not in said.replace("'CPU': 1}", "'CPU': 1.0}"):
            assert time.monotonic() < deadline, said
            time.sleep(1)
            status = [str(BIN / "ray"), "status", "--address", address]
            said = subprocess.run(status, capture_output=True, text=True, check=False).stdout
        asking.communicate("\n")
