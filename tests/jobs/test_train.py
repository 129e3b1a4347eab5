"""The main job as a user runs it: on the tests' Ray cluster, and, where it is killed with it, on one of its own."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from infra.storage.lease import is_held
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.tracker import Tracker
from jobs.train import main
from pipeline.checkpoint.catalog import list_checkpoints, newest_state
from pipeline.checkpoint.format import Snapshot, latest_valid
from tests.support.beside import done_once
from tests.support.killing import ROOT, kill_family, run_until
from tests.support.shards import write_shards

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SAMPLES_PER_EPOCH = 132


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small shards in it."""
    folder = tmp_path_factory.mktemp("train")
    write_shards(folder / "train", [50, 64, 23])
    write_shards(folder / "val", [30])
    return folder


def arguments(place: Path, name: str, *more: str) -> list[str]:
    """The demo recipe, made small: two epochs a stage of 132 samples, a checkpoint every half epoch; no spare workers,
    which tests/infra/cluster/test_prestart.py has.
    """
    stages = [f"--stages.{index}.epochs=2" for index in range(4)] + [
        f"--stages.{index}.image-size={size}" for index, size in enumerate((32, 48, 48, 64))
    ]
    return [
        *("demo_scratch", "--name", name, "--storage", str(place / "runs")),
        *("--data.train", str(place / "train"), "--data.val", str(place / "val")),
        *("--tracking.uri", f"sqlite:///{place}/mlflow.db", "--tracking.system-metrics", "False"),
        *("--checkpoint.every-epochs", "0.5", "--trainer.log-every", "2", "--profile", "2"),
        *("--cluster.standby", "False"),
        *stages,
        *more,
    ]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a process of its own."""
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def newest(place: Path, name: str) -> Snapshot | None:
    return latest_valid(open_storage(str(place / "runs" / name)))[0]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_with_all_its_processes_goes_on_and_is_on_record_once(
    place: Path, cluster_address: str
) -> None:
    """That its weights are those of an undisturbed run is seen in tests/chaos/test_chaos.py."""

    def mid_epoch_of_stage_2() -> bool:
        if (snapshot := newest(place, "killed")) is None:
            return False
        state = snapshot.state
        return (
            len(state.stage_starts) == 2 and state.cursor % SAMPLES_PER_EPOCH != 0 and len(state.stage_results[1]) > 0
        )

    # On a cluster of its own, which dies with it.
    run_until(command(*arguments(place, "killed")), mid_epoch_of_stage_2, pause_s=0.02)
    at = newest(place, "killed")
    assert at is not None
    assert len(at.state.stage_starts) == 2
    again = run(*arguments(place, "killed", "--cluster.address", cluster_address))
    assert again.returncode == 0, again.stderr
    assert f"killed resumes at cursor {at.state.cursor}" in again.stdout
    _check_record(place, "killed")


def _client(place: Path) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def _record(place: Path, name: str) -> Run:
    """The one run of this name in MLflow."""
    experiment = _client(place).get_experiment_by_name("crescendo")
    assert experiment is not None
    (record,) = _client(place).search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return record


def _check_record(place: Path, name: str) -> None:
    """The run is in MLflow, once, with each of its rows once."""
    client, record = _client(place), _record(place, name)
    assert record.info.status == "FINISHED"
    steps = sorted(point.step for point in client.get_metric_history(record.info.run_id, "train/loss"))
    assert len(steps) == len(set(steps))
    last = newest(place, name)
    assert last is not None
    assert steps[-1] == last.state.cursor
    assert set(range(96, steps[-1], 96)) <= set(steps)  # every second step of 48
    assert len(client.list_artifacts(record.info.run_id, "images")) == 2 * 4  # each with its smaller copy
    run_id = record.info.run_id
    assert len(client.list_artifacts(run_id, "profile")) == 1
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files >= {"predictions.png", "confusion-matrix.png", "checkpoints.json"}
    kept = json.loads(Path(client.download_artifacts(run_id, "checkpoints.json")).read_text())
    there = [f"{place}/runs/{name}/{key}" for key in list_checkpoints(open_storage(f"{place}/runs/{name}"))]
    assert [row[-2:] for row in kept["data"]] == [["valid", uri] for uri in reversed(there)]
    _check_lineage(client, record, there)


def _check_lineage(client: MlflowClient, record: Run, checkpoints: list[str]) -> None:
    """MLflow knows where the run comes from, its data once, and a model for each kept checkpoint, with its values."""
    assert record.data.tags["mlflow.source.name"]
    assert record.data.tags["mlflow.user"] == getpass.getuser()
    inputs = client.get_run(record.info.run_id).inputs.dataset_inputs
    assert {one.dataset.name.rpartition("/")[2]: one.tags[0].value for one in inputs} == {
        "train": "training",
        "val": "validation",
    }
    models = client.search_logged_models([record.info.experiment_id], f"source_run_id = '{record.info.run_id}'")
    assert sorted(model.tags["checkpoint"] for model in models) == sorted(checkpoints)
    last = next(model for model in models if model.tags["checkpoint"] == checkpoints[-1])
    assert last.params["stage"] == last.params["stages_done"] == "4"
    points = client.get_metric_history(record.info.run_id, "val/accuracy")
    assert len(points) == len({point.step for point in points})  # not doubled by the models'
    (accuracy,) = [metric for metric in last.metrics if metric.key == "val/accuracy"]
    assert (accuracy.value, accuracy.step) == (points[-1].value, points[-1].step)
    assert accuracy.dataset_digest in [one.dataset.digest for one in inputs]


def _lose_a_row(place: Path, name: str) -> None:
    """Leave a row in the run's storage that MLflow doesn't have, as when it is away at a run's end."""
    away = TrackingConfig(uri="http://127.0.0.1:9", system_metrics=False)
    tracker = Tracker(away, name, storage=open_storage(str(place / "runs" / name)))
    tracker.log_metrics({"val/late": 0.5}, 24)
    assert not tracker.close("FINISHED", 0.5)


@pytest.fixture(scope="module")
def short(place: Path, ray_cluster: None) -> list[str]:
    """The arguments of a run of one worker that has ended: a step in each stage."""
    told = arguments(place, "short", *(f"--stages.{index}.epochs=0.2" for index in range(4)))
    told += ["--cluster.num-workers", "1"]
    assert main(told) == 0
    return told


@pytest.mark.timeout(600)
def test_a_run_trains_to_its_end_and_is_on_record(place: Path, short: list[str]) -> None:
    last, record = newest(place, "short"), _record(place, "short")
    assert last is not None
    assert len(last.state.stage_starts) == 5
    assert record.info.status == "FINISHED"
    assert record.data.metrics["val/accuracy"] == last.state.evaluation["val/accuracy"]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_finished_run_is_extended_from_its_last_state(
    place: Path, short: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """That it goes on bit for bit is seen in tests/pipeline/checkpoint/test_resume.py."""
    assert main([*short, "--extend", "1"]) == 0
    assert f"resumes from {place}/runs/short" in capsys.readouterr().out
    before, after = newest(place, "short"), newest(place, "short-plus-1")
    assert before is not None
    assert after is not None
    assert after.state.stage_starts[:4] == before.state.stage_starts[:4]
    assert 0 < after.state.cursor - before.state.cursor <= 1.5 * SAMPLES_PER_EPOCH
    assert main([*short, "--extend", "1"]) == 0
    assert "short-plus-1 is finished" in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_after_its_last_checkpoint_is_completed_in_mlflow_by_the_same_command(
    place: Path, cluster_address: str
) -> None:
    flags = [f"--stages.{index}.epochs=0.2" for index in range(4)]
    told = arguments(place, "unrecorded", "--cluster.num-workers", "1", *flags)
    storage = open_storage(f"{place}/runs/unrecorded")

    def is_trained() -> bool:
        state = newest_state(storage)[0]
        return state is not None and len(state.stage_starts) == 5

    run_until(command(*told), is_trained, pause_s=0.005)  # on a cluster of its own, which dies with it
    assert _record(place, "unrecorded").info.status == "RUNNING"
    told += ["--cluster.address", cluster_address]
    again = run(*told)
    assert again.returncode == 0, again.stderr
    assert "its record in MLflow was left open: completing it" in again.stdout
    client, record = _client(place), _record(place, "unrecorded")
    run_id = record.info.run_id
    assert record.info.status == "FINISHED"
    last = newest(place, "unrecorded")
    assert last is not None
    for name in ("train/loss", "val/accuracy", "final/ema/accuracy"):
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert len(steps) == len(set(steps))
        assert steps[-1] == last.state.cursor
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files >= {"predictions.png", "confusion-matrix.png", "classes.json", "checkpoints.json"}
    there = [f"{place}/runs/unrecorded/{key}" for key in list_checkpoints(storage)]
    assert record.data.tags["checkpoint"] == there[-1]
    _check_lineage(client, record, there)
    # Once: the next call finds it closed, and starts nothing.
    last_call = run(*told)
    assert (last_call.returncode, last_call.stderr) == (0, "")
    assert "unrecorded is finished" in last_call.stdout
    assert _record(place, "unrecorded").info == record.info


@pytest.mark.timeout(600)
def test_what_a_cluster_sends_to_end_a_job_is_ctrl_c_while_ray_starts_too(place: Path) -> None:
    told = [*arguments(place, "terminated"), "--cluster.num-workers", "1"]
    process = subprocess.Popen(command(*told), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not _starts_ray(process):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert "Traceback" not in process.communicate()[1]
        assert process.returncode == 130
    finally:
        if process.poll() is None:
            kill_family(process)
    assert not is_held(open_storage(f"{place}/runs/terminated"))


def _starts_ray(process: subprocess.Popen[str]) -> bool:
    with suppress(psutil.Error):  # a process that ends meanwhile
        return any("gcs_server" in str(one.cmdline()) for one in psutil.Process(process.pid).children(recursive=True))
    return False


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_submitting_a_finished_run_says_so_and_another_config_is_refused(
    place: Path, short: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(short) == 0
    assert "short is finished" in capsys.readouterr().out
    _lose_a_row(place, "short")
    last = run(*short)
    assert (last.returncode, last.stderr) == (0, "")
    assert "its missing metrics are now at sqlite:///" in last.stdout
    client, record = _client(place), _record(place, "short")
    assert [point.value for point in client.get_metric_history(record.info.run_id, "val/late")] == [0.5]
    assert record.info.status == "FINISHED"
    assert "seed: 0 -> 1" in refused(*short, "--seed", "1")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_fails_says_why_in_one_line_and_is_recorded_as_failed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, "diverged", "--optimizer.lr", "1e30", "--optimizer.warmup-epochs", "0")) == 1
    said = "".join(capsys.readouterr())
    assert "error: diverged failed: the loss is nan at cursor" in said
    assert "Traceback" not in said
    assert _record(place, "diverged").info.status == "FAILED"
    assert not is_held(open_storage(str(place / "runs" / "diverged")))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_whose_storage_stays_away_ends_with_a_clear_line_and_goes_on_once_it_is_back(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, aside = place / "runs" / "away" / "checkpoints", place / "aside"
    away = arguments(place, "away", "--checkpoint.give-up-s", "2")

    def lose_the_storage() -> None:
        folder.rename(aside)
        folder.write_text("")

    with done_once(lambda: newest(place, "away"), lose_the_storage):
        assert main(away) == 1
    said = "".join(capsys.readouterr())
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: away failed: no checkpoint could be written for")
    assert str(folder) in line
    assert "Traceback" not in said
    assert _record(place, "away").info.status == "FAILED"
    folder.unlink()
    aside.rename(folder)
    at = newest(place, "away")
    assert at is not None
    assert main(away) == 0
    assert f"away resumes at cursor {at.state.cursor}" in capsys.readouterr().out
    _check_record(place, "away")


def refused(*arguments: str) -> str:
    """Return the one line with which a job is refused."""
    with pytest.raises((ValueError, OSError)) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_user_mistake_is_one_line_before_any_worker_starts(place: Path, tmp_path: Path) -> None:
    def train(*more: str) -> str:
        return refused(*arguments(place, "wrong", *more))

    assert "holds no .tar shard" in train("--data.train", str(tmp_path))
    assert "--sed" in train("--sed", "1")
    assert "seed" in train("--seed", "one")
    assert "36 or 48" in train("--stages.0.batch-size", "40")
    assert "5 workers" in train("--cluster.num-workers", "5")
    assert "image_size is 4" in train("--stages.0.image-size", "4")
    read_only = tmp_path / "file"
    read_only.write_text("")
    assert str(read_only) in train("--storage", str(read_only))


def test_a_user_mistake_ends_with_exit_code_2() -> None:
    ended = run("demmo")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "did you mean demo?" in ended.stderr
