"""The typed client of a run's controller: the type checker knows its calls, and Ray's errors come as its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.control.controller import StageController
from pipeline.control.status import MAX_NOTES
from pipeline.run.controller_client import ControllerAwayError, ControllerClient, ControllerLostError, find_controllers
from pipeline.schedule.decisions import Stop
from tests.support.groups import no_group, plan_of, stage

LINES = 500
ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "pipeline/run/controller_client.py"


WRONG_CALLS = {
    "another_name": (
        "_tell(StageController.saved, uri, cursor)",
        "_tell(StageController.checkpoint_saved, uri, cursor)",
    ),
    "other_arguments": ("_tell(StageController.saved, uri, cursor)", "_tell(StageController.saved, cursor, uri)"),
    "another_answer": ("_wait(StageController.environment)", "_wait(StageController.reached)"),
}


def test_a_call_that_the_controller_does_not_take_fails_the_type_checker(tmp_path: Path) -> None:
    source, expected = CLIENT.read_text(), []
    for name, (call, wrong) in WRONG_CALLS.items():
        assert call in source
        (tmp_path / f"{name}.py").write_text(source.replace(call, wrong))
        expected.append((f"{name}.py", source[: source.index(call)].count("\n") + 1))
    check = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--config-file", str(ROOT / "pyproject.toml")]
    changed = [str(tmp_path / file) for file, _ in expected]
    checked = subprocess.run([*check, *changed], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    errors = re.findall(r"(\w+\.py):(\d+): error", checked.stdout)
    assert {(file, int(line)) for file, line in errors} == {*expected}, checked.stdout


class SlowController(StageController):
    """Waits in one call until the test ends."""

    def environment(self) -> str:
        threading.Event().wait()
        return ""


@pytest.fixture
def controller(ray_cluster: None) -> Iterator[ControllerClient]:
    from infra.cluster.connect import start_actor

    client = ControllerClient(start_actor(SlowController, plan_of(stage()), no_group, name="run-called"))
    yield client
    client.kill()


def _tell(client: ControllerClient) -> str:
    client.note("from afar")
    return client.ask(Stop())


def _ask_for_ever(client: ControllerClient) -> None:
    """Ray ends a process some time after `kill`."""
    while True:
        client.status()


def test_a_client_works_from_every_process_and_says_what_is_wrong(controller: ControllerClient) -> None:
    import ray

    assert "stop: at the next decision point" in ray.get(ray.remote(num_cpus=0)(_tell).remote(controller))
    assert find_controllers()["called"].status().notes == ("from afar",)
    assert find_controllers()["called"].actor_id == controller.actor_id
    joined = controller.join(1, "node", "", 2)
    assert (joined.error, joined.tracking_uri, joined.out_of_memory) == ("", "", ())
    with pytest.raises(ControllerAwayError, match="no answer for 1 s"):
        controller.within(1).environment()
    run = controller.run()
    assert run.result(60).phase == "finished"
    assert run.done(0)
    controller.kill()
    with pytest.raises(ControllerLostError, match="the run's controller was lost"):
        _ask_for_ever(controller)
    with pytest.raises(ControllerLostError, match="nobody has no controller"):
        ControllerClient.of_run("nobody")


def _tell_lines(client: ControllerClient) -> None:
    for number in range(LINES):
        client.note(f"line {number}")
        client.saved(f"checkpoint-{number}", number)
    client.tell("the last line")


def test_what_is_told_is_heard_in_that_order(controller: ControllerClient) -> None:
    import ray

    ray.get(ray.remote(num_cpus=0)(_tell_lines).remote(controller))
    status = controller.status()
    assert status.notes == (*(f"line {number}" for number in range(LINES - MAX_NOTES + 1, LINES)), "the last line")
    assert status.checkpoint is not None
    assert status.checkpoint.cursor == LINES - 1


def test_a_run_that_fails_says_why(ray_cluster: None) -> None:
    from infra.cluster.connect import start_actor

    def fails(segment: object) -> None:
        raise ValueError("shard 3 is damaged")

    client = ControllerClient(start_actor(StageController, plan_of(stage()), fails, name="run-failing"))
    try:
        with pytest.raises(RuntimeError, match=r"^shard 3 is damaged$"):
            client.run().result(60)
    finally:
        client.kill()
