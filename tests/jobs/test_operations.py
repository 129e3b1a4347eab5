"""The local stack, and a run on it as a user has it: checked, submitted, stopped, resumed; in S3 and MLflow."""

from __future__ import annotations

import ipaddress
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import jobs.submit
from infra.devstack.stack import BUCKET, Stack
from infra.storage.open import open_storage
from pipeline.checkpoint.format import latest_valid
from tests.support.browser import CHROMIUM, missing
from tests.support.shards import write_shards

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
MLFLOW_PASSWORD = "correct-horse-battery-staple"
OF_A_RUN = ("ray::RayTrainWorker", "ray::StageController", "ray::TrainController")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, with shards in its bucket."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    with pytest.MonkeyPatch.context() as patch:
        # The nodes have them from here, as a team's nodes have theirs; this MLflow server lets everybody in.
        patch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", MLFLOW_PASSWORD)
        stack.up()
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        shards = write_shards(tmp_path_factory.mktemp("shards") / "shards", [50, 64, 23])
        storage = open_storage(f"s3://{BUCKET}/shards")
        for path in shards.iterdir():
            storage.upload(path.name, path)
        yield stack
    stack.down()
    assert [server for server in stack.servers().values() if server.process() is not None] == []


def flags(name: str) -> list[str]:
    stages = [f"--stages.{stage}.{flag}" for stage in range(4) for flag in ("epochs=5", "image_size=32")]
    data = ["--data.train", f"s3://{BUCKET}/shards", "--data.val", f"s3://{BUCKET}/shards", "--data.cache-dir", "none"]
    pace = ["--trainer.log-every", "1", "--tracking.system-metrics", "False", "--cluster.num-workers", "1"]
    pace += ["--cluster.standby", "False"]
    return ["demo_scratch", "--name", name, "--storage", f"s3://{BUCKET}/runs", *data, *pace, *stages]


def start(verb: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"jobs.{verb}", *arguments]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, stdin=stdin, text=True, **both)  # type: ignore[call-overload]


@pytest.mark.soak
def test_every_part_listens_on_loopback_and_ray_wants_its_token(stack: Stack) -> None:
    for server in stack.servers().values():
        process = server.process()
        assert process is not None
        for member in [process, *process.children(recursive=True)]:
            for connection in member.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
                    assert address.is_loopback, (member.cmdline()[:3], connection.laddr)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.environment()['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=10)
    assert stack.env_file.stat().st_mode & 0o077 == 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_submitted_job_is_stopped_by_ctrl_c_with_a_checkpoint_and_resumed(stack: Stack) -> None:
    keyboard, terminal = pty.openpty()
    first = start("submit", *flags("stopped"), stdin=terminal)
    said = until_it_trains(first)
    first.send_signal(signal.SIGINT)
    os.write(keyboard, b"s\n")
    said += rest_of(first)
    assert "or [s]top it with a checkpoint?" in said
    assert "run the same command again to resume it" in said
    assert f"MLflow run {stack.environment()['MLFLOW_TRACKING_URI']}/#/experiments/" in said
    check_nothing_trains(stack)
    rest = resumed("stopped", newest_cursor("stopped"))
    check_secrets_are_nowhere(stack, said + rest)
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("the run is well, its pages in MLflow were not looked at: Chromium is not on this machine")
    check_pages(stack, rest)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_job_is_stopped_with_a_checkpoint_by_the_command_that_its_submission_names(stack: Stack) -> None:
    job = start("submit", *flags("by-ray"))
    said = until_it_trains(job)
    command = next(line for line in said.splitlines() if line.startswith("stop it with `")).split("`")[1]
    ray, *arguments = command.split()
    assert ray == "ray"
    stop = subprocess.run([RAY, *arguments], capture_output=True, text=True, timeout=200)
    assert stop.returncode == 0, stop.stdout + stop.stderr
    said += rest_of(job)
    assert "run the same command again to resume it" in said
    check_nothing_trains(stack)
    assert newest_cursor("by-ray") > 0
    check_secrets_are_nowhere(stack, said)


def until_it_trains(job: subprocess.Popen[str]) -> str:
    """Return what a submission prints until its job trains."""
    said = ""
    for line in job.stdout or ():
        said += line
        if "| epoch" in line:
            break
    return said


def rest_of(job: subprocess.Popen[str]) -> str:
    """Return what a submission prints until its end, which is a good one."""
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said
    return said


def newest_cursor(name: str) -> int:
    found = latest_valid(open_storage(f"s3://{BUCKET}/runs/{name}"))[0]
    assert found is not None
    return found.state.cursor


def resumed(name: str, cursor: int) -> str:
    """Submit a stopped run again, and return what is printed until it is trained."""
    said = rest_of(start("submit", *flags(name)))
    assert f"{name} resumes at cursor {cursor}" in said
    assert "stage" in said
    assert "checkpoints: s3://" in said
    return said


def check_pages(stack: Stack, said: str) -> None:
    """MLflow's pages of the run show what they should, in a browser."""
    assert CHROMIUM, "no Chromium (Debian: chromium)"
    url, _, view = next(word for word in said.split() if "/#/experiments/" in word).partition("?")
    assert view == "workflowType=machine_learning"
    profile = stack.folder / "browser"
    assert (
        missing(
            url, profile, "stopped", "Finished", "RandAugment", "val/accuracy", "train/loss", r"/train\b", r"-\d+</"
        )
        == []
    )
    assert missing(f"{url}/model-metrics", profile, "image_size", "images_per_s", "main-svg", "samples") == []
    charts = next(word for word in said.split() if "viewStateShareKey=" in word)
    assert missing(charts, profile, "Crescendo: first charts", "train/loss vs val/loss", "main-svg") == []
    for name in ("predictions.png", "confusion-matrix.png"):
        assert missing(f"{url}/artifacts/{name}", profile, r'<img [^>]*(src="blob:|get-artifact)') == [], name


def check_nothing_trains(stack: Stack) -> None:
    """A stopped job leaves no workers and no controller."""
    head = stack.servers()["ray"].process()
    assert head is not None
    deadline = time.monotonic() + 60
    while left := [title for title in map(_title, head.children(recursive=True)) if title.startswith(OF_A_RUN)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def check_secrets_are_nowhere(stack: Stack, said: str) -> None:
    """Keys and passwords of a run's nodes are in no file of Ray's, not in MLflow, and not in what was printed."""
    env = stack.environment()
    secrets = [env["AWS_SECRET_ACCESS_KEY"], MLFLOW_PASSWORD, stack.token_file.read_text()]
    assert [secret for secret in secrets if secret in said] == []
    folders = [stack.servers()["ray"].session_folder, stack.folder / "mlflow"]  # type: ignore[attr-defined]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = " ".join(path.name for path in files)
    assert all(kind in names for kind in ("worker-", ".err", "job-driver-", "raylet.out", "mlflow.db"))
    assert [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)] == []


@pytest.mark.soak
@pytest.mark.usefixtures("stack")
def test_rays_own_commands_submit_and_list_jobs() -> None:
    plan = ["python", "-m", "jobs.plan", *flags("planned")]
    submit = [RAY, "job", "submit", "--working-dir", ".", "--", *plan]
    said = subprocess.run(submit, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "image" in said.stdout
    listed = subprocess.run([RAY, "job", "list"], capture_output=True, text=True, timeout=100, check=True)
    assert "jobs.plan" in listed.stdout


@pytest.mark.soak
def test_the_doctor_finds_all_well_or_says_what_is_not(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    said = rest_of(start("doctor", *flags("checked")))
    for check in (
        "in parts",
        "conditional writes",
        "MLflow",
        "versions",
        "clock",
        "shared memory",
        "no problems found",
    ):
        assert check in said
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    ill = start("doctor", *flags("checked"), "--tracking.uri", "http://127.0.0.1:9")
    said = ill.communicate(timeout=200)[0]
    assert ill.returncode == 1, said
    assert "the server refuses the secret key" in said
    assert "no answer; start the MLflow server" in said


def test_a_job_refuses_folders_that_end_with_it() -> None:
    with pytest.raises(
        ValueError, match=r"^data\.train is 'data/elpv/train': a submitted job runs in a copy of this folder"
    ):
        jobs.submit.main(["demo"])
