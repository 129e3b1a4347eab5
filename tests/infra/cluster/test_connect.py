"""Connecting to a cluster that isn't there or refuses, and starting one on a machine that is too busy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from infra.cluster.code_package import ROOT
from infra.cluster.config import ClusterConfig, ClusterError, RayVersionError
from infra.cluster.connect import check_port, has_labels, has_own_cluster, join, start_ray, token_problem
from infra.cluster.logs import PACKAGES

PROGRAM = """
from infra.cluster.config import ClusterConfig, ClusterError
from infra.cluster.connect import connect
try:
    connect(ClusterConfig(address="127.0.0.1:1"), num_workers=1)
except ClusterError as error:
    print(error)
"""


def test_a_cluster_that_is_not_there_is_one_line_without_rays_minutes_of_trying() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("cluster.address is '127.0.0.1:1': no Ray cluster answers there")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""  # Ray's own tries are said there


def test_only_addresses_with_a_port_are_looked_at() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(OSError, match="refused"):
            check_port(address, 1.0)
    for address in ("local", "auto", ""):
        check_port(address, 1.0)


def failing(*errors: Exception) -> Callable[..., None]:
    """A `ray.init` that raises one error after another, the last one for good."""
    left = list(errors)

    def init(**_: object) -> None:
        raise left.pop(0) if len(left) > 1 else left[0]

    return init


UNAUTHENTICATED = "Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or incorrect"


def refusal() -> Exception:
    """As `ray.init` raises it."""
    error = ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:6379")
    error.__cause__ = RuntimeError(f"Failed to connect to GCS. Last connection error: Traceback\n{UNAUTHENTICATED}")
    return error


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and an environment without."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ray").mkdir()
    return tmp_path


@pytest.mark.parametrize("in_home", [False, True])
@pytest.mark.parametrize("mode", ["", "disabled", "token"])
@pytest.mark.parametrize("variable", ["", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_refusal_names_the_token_that_is_missing_or_wrong(
    home: Path, monkeypatch: pytest.MonkeyPatch, in_home: bool, mode: str, variable: str
) -> None:
    if in_home:
        (home / ".ray" / "auth_token").write_text("0" * 32)
    for name in filter(None, [variable, "RAY_AUTH_MODE" if mode else ""]):
        monkeypatch.setenv(name, mode if name == "RAY_AUTH_MODE" else "some")
    said = token_problem()
    if mode != "token":
        assert "export RAY_AUTH_MODE=token" in said
        assert f"RAY_AUTH_MODE is {mode or 'not set'}" in said
        assert ("is sent then" in said) == bool(in_home or variable)
    elif variable:
        assert said.startswith(f"does not accept the token of {variable}:")
    elif in_home:
        assert said.startswith(f"does not accept the token in {home}/.ray/auth_token:")
    else:
        assert "here is none" in said


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (refusal(), ClusterError, "the Ray cluster there requires a token"),
        (ray.exceptions.AuthenticationError("no authentication token was found"), ClusterError, "requires a token"),
        (ConnectionError("Failed to connect to Ray cluster"), ClusterError, "no Ray cluster answers there"),
        (RuntimeError("Failed to get node info"), ClusterError, "no Ray cluster answers there"),
        (ray.exceptions.RaySystemError("lost"), ClusterError, "no Ray cluster answers there"),
        (
            RuntimeError("Version mismatch: the cluster\n  Ray: 2.61"),
            RayVersionError,
            "Version mismatch: the cluster Ray",
        ),
    ],
)
def test_why_a_cluster_is_not_joined_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    monkeypatch.setattr(ray, "init", failing(error))
    with pytest.raises(ClusterError, match=r"^--address is 'auto': .+$") as caught:
        join("auto", 1.0, name="--address")
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


SLOW_STARTS = [
    Exception("The current node timed out during startup. This could happen because some of the raylet failed."),
    RuntimeError("Failed to start GCS.  Last 0 lines of error files:\n\n.Please check"),
    ray.exceptions.RaySystemError("raylet died"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", SLOW_STARTS, ids=lambda error: type(error).__name__)
def test_a_ray_that_does_not_start_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(ray, "init", failing(error))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ClusterError, match=r"^Ray did not start on this machine in 3 tries .+ try again, or .+$"):
        start_ray()


def test_a_slow_start_is_tried_again_and_wrong_arguments_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def init(**_: object) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise SLOW_STARTS[len(tries)]

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    start_ray()
    assert len(tries) == 3
    assert has_own_cluster()
    monkeypatch.setattr(ray, "init", lambda **_: None)
    join("auto", 1.0, name="--address")
    assert not has_own_cluster()
    monkeypatch.setattr(ray, "init", failing(ValueError("num_cpus is -1"), AssertionError("tried again")))
    with pytest.raises(ValueError, match="num_cpus"):
        start_ray()


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_is_started_here_has_nothing_that_serves_others() -> None:
    started = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert any("raylet/raylet" in line for line in started)
    for script in ("dashboard/dashboard.py", "_private/log_monitor.py", "autoscaler/_private/monitor.py"):
        assert not any(script in line for line in started), script


OWN = """
import sys
import ray
from infra.cluster.config import ClusterConfig, ClusterError
from infra.cluster.connect import connect
address, = sys.argv[1:]
try:
    connect(ClusterConfig(address=address), num_workers=1)
except ClusterError as error:
    print(error)
else:
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_another_commands_own_cluster_is_not_trained_on_and_its_log_stays_short() -> None:
    command = [sys.executable, "-c", OWN]
    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as folder:  # tmp_path is too long for it
        env, pipe = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token"}, subprocess.PIPE
        first = subprocess.Popen([*command, "local"], cwd=ROOT, env=env, text=True, stdin=pipe, stdout=pipe)
        assert first.stdout
        address = first.stdout.readline().strip()
        second = subprocess.run(
            [*command, address], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True
        )
        log = (Path(folder) / "ray" / "session_latest" / "logs" / "dashboard_agent.log").read_text()
        first.communicate("", timeout=60)
    assert second.stdout.startswith(f"cluster.address is '{address}': the Ray cluster there was started by another")
    assert second.stdout.count("\n") == 1
    assert "EventAgent" in log
    assert "Get dashboard http address failed" not in log  # said every second for as long as the cluster lives


@pytest.mark.parametrize(
    ("wanted", "labels", "has"),
    [
        ("spot", "spot", True),
        ("spot", "on-demand", False),
        ("spot", None, False),
        ("!spot", "on-demand", True),
        ("!spot", None, True),
        ("in(a,b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a,b)", "c", True),
        ("!in(a,b)", "a", False),
    ],
)
def test_labels_are_matched_as_ray_does(wanted: str, labels: str | None, has: bool) -> None:
    from ray._raylet import node_labels_match_selector  # what Ray's scheduler goes by

    node = {} if labels is None else {"market": labels}
    assert has_labels(node, {"market": wanted}) == has
    assert node_labels_match_selector(node, {"market": wanted}) == has


def test_a_selector_is_read_from_the_command_line_and_a_mistake_is_one_line() -> None:
    config = ClusterConfig(label_selector=("ray.io/market-type=!spot", "rack = in(a, b)"), accelerator_type="L4")
    assert config.labels == {
        "ray.io/market-type": "!spot",
        "rack": "in(a,b)",
        "ray.io/accelerator-type": "L4",
    }
    with pytest.raises(ValueError, match=r"^cluster.label_selector has 'spot': each is KEY=VALUE"):
        ClusterConfig(label_selector=("spot",))


FROZEN = """
import os, signal, threading, time
from types import SimpleNamespace
# Ray waits for 30 s, in Python by a clock that is ten times as fast here.
os.environ["RAY_raylet_start_wait_time_s"] = "3"
import psutil
import ray._private.node
from infra.cluster import connect
from infra.cluster.config import ClusterConfig, ClusterError
connect.START_TRIES = 1
ray._private.node.time = SimpleNamespace(**vars(time) | {"monotonic": lambda: 10 * time.monotonic()})
seen = set()
def freeze():
    while True:
        for child in psutil.Process().children(recursive=True):
            try:
                if child.name() == "raylet" and child.pid not in seen:
                    os.kill(child.pid, signal.SIGSTOP)
                    seen.add(child.pid)
            except (psutil.Error, ProcessLookupError):
                pass
        time.sleep(0.02)
threading.Thread(target=freeze, daemon=True).start()
try:
    connect.connect(ClusterConfig(), num_workers=1)
except ClusterError as error:
    print(error)
"""


def test_a_machine_that_does_not_get_to_it_is_told_so_and_nothing_is_left_running(tmp_path: Path) -> None:
    """A raylet that is paused as soon as it is there, as on a machine that is too busy."""
    import psutil

    command = [sys.executable, "-c", FROZEN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.startswith("Ray did not start on this machine in 1 tries (The current node timed out")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    session = [p for p in psutil.process_iter(["name", "status"]) if p.info["status"] == psutil.STATUS_STOPPED]
    assert [process for process in session if process.info["name"] == "raylet"] == []


SHIPPED = """
import os, sys
sys.path.insert(0, os.getcwd())
import ray
from infra.cluster.config import ClusterConfig
from infra.cluster.connect import connect
assert connect(ClusterConfig(), num_workers=1) == ""
@ray.remote
def look():
    import infra.cluster.connect
    return os.getcwd(), infra.cluster.connect.__file__, sorted(os.listdir())
place, module, found = ray.get(look.remote())
assert module == os.path.join(place, "infra", "cluster", "connect.py"), module
print([name for name in found if not name.startswith("__")])
"""


@pytest.mark.slow
def test_a_folder_larger_than_ray_takes_does_not_keep_a_checkout_from_training(tmp_path: Path) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name)
    for place in ("imagenet", "datasets/imagenet"):
        (tmp_path / place).mkdir()
        with (tmp_path / place / "train.tar").open("wb") as stream:
            stream.truncate(600 * 2**20)
    done = subprocess.run(
        [sys.executable, "-c", SHIPPED], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=True
    )
    assert done.stdout.strip() == str(sorted(PACKAGES))
