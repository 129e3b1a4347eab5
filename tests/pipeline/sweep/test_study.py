"""Studies on a real cluster of two CPUs: trials share a start, are ended early, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil
import pytest
import torch

from infra.cluster.config import ClusterConfig
from infra.storage.lease import is_held
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from pipeline.checkpoint.catalog import newest_state
from pipeline.checkpoint.format import latest_valid
from pipeline.config import TrainConfig
from pipeline.run.preflight import preflight
from pipeline.sweep.config import SweepOptions
from pipeline.sweep.ledger import Record, read_records
from pipeline.sweep.runner import StudyRunner
from pipeline.sweep.space import Range, SweepSpace
from pipeline.sweep.strategy import RandomStrategy
from pipeline.sweep.study import Study, next_record, open_ledger, planned_points
from pipeline.sweep.tree import shared_prefixes
from tests.support.beside import repeated
from tests.support.configs import MakeConfig
from tests.support.runs import train_here

SPACE = SweepSpace(dropout_end=Range(0.1, 0.5), randaugment_end=Range(0, 9))


def files(records: Sequence[Record]) -> dict[str, bytes]:
    return {"report.md": "".join(record.name for record in records).encode()}


def make_study(config: TrainConfig, scheduler: str, num_trials: int) -> Study:
    space = SPACE.distributions()
    study = Study(
        kind="sweep",
        base=config,
        space=space,
        strategy=RandomStrategy(space, seed=0),
        first=SPACE.point_of(config),
        configure=lambda point: SPACE.apply(config, point),
        score=lambda metrics, figures: metrics["val/accuracy"],
        score_name="val/accuracy",
        scheduler=scheduler,  # type: ignore[arg-type]
    )
    points = planned_points(study, [], num_trials, RandomStrategy(space, seed=0))
    return replace(study, shared=shared_prefixes([study.configure(point) for point in points]))


def check_nothing_is_left() -> None:
    """No placement group, and no actor that has a CPU."""
    import ray

    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}


def check_is_as_alone(study: Study, record: Record) -> None:
    """A trial ended with the weights of a run that nothing was shared with or happened to, bit for bit."""
    train_here(replace(study.configure(record.point), name="alone"))
    mine, other = (latest_valid(open_storage(f"{study.base.storage}/{name}"))[0] for name in (record.name, "alone"))
    assert mine is not None
    assert other is not None
    assert mine.state.cursor == other.state.cursor
    assert [name for name in mine.model if not torch.equal(mine.model[name], other.model[name])] == []


@contextmanager
def worker_killed_once(condition: Callable[[], object]) -> Iterator[list[int]]:
    """Kill the training worker below this process when something is so; gives the list of what was killed."""
    killed: list[int] = []

    def kill() -> bool:
        for process in psutil.Process().children(recursive=True) if condition() else ():
            with suppress(psutil.Error):
                if "RayTrainWorker" in "".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
        return bool(killed)

    with repeated(kill, 0.05):
        yield killed


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_halving_on_two_cpus_shares_the_start_and_leaves_nothing_behind(
    make_config: MakeConfig, sqlite_uri: str
) -> None:
    from mlflow.tracking import MlflowClient

    config = preflight(
        make_config(
            name="halving",
            cluster=ClusterConfig(num_workers=1),
            tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False),
        )
    ).config
    study = make_study(config, "halving", 4)
    assert len(study.shared) == 1
    # Asked for more than there is room for: four trials of one worker each, on two CPUs.
    options = SweepOptions(max_trials=4, concurrent=4)
    result = StudyRunner(study, options, open_ledger(study), files=files).run()
    assert result.whole
    assert sorted(record.state for record in result.records) == ["finished", "finished", "stopped", "stopped"]
    assert {len(record.stages) for record in result.records if record.state == "stopped"} == {1}

    check_nothing_is_left()

    # A trial that continued from the shared start is the run that it would have been alone.
    finished = next(record for record in result.records if record.state == "finished")
    check_is_as_alone(study, finished)

    # The record: the sweep, and below it the shared start and the trials that continued from it.
    client = MlflowClient(sqlite_uri)
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("halving")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 3
    assert runs[finished.name].data.params["sweep.dropout_end"] == str(finished.point["dropout_end"])
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "report")] == ["report/report.md"]

    # The same study again has nothing to train, also where a kill came before a trial's end was written down: neither
    # here nor in MLflow, where what the end adds is there once, and the shared start has ended as well.
    again = make_study(config, "halving", 4)
    ledger = open_ledger(again)
    before = [replace(record) for record in ledger.records]
    ledger.records[finished.number].state = "open"
    for run in runs.values():
        client.update_run(run.info.run_id, status="RUNNING")
    result = StudyRunner(again, options, ledger, files=files).run()
    assert result.whole
    assert result.records == before == read_records(study.storage)
    assert {client.get_run(run.info.run_id).info.status for run in runs.values()} == {"FINISHED"}
    for name in ("val/accuracy", "final/ema/accuracy"):
        steps = [point.step for point in client.get_metric_history(runs[finished.name].info.run_id, name)]
        assert len(steps) == len(set(steps)) >= 1


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_asha_ends_in_the_middle_leaves_a_checkpoint_and_nothing_else(
    make_config: MakeConfig, sqlite_uri: str
) -> None:
    from mlflow.tracking import MlflowClient

    # Its second stage has no end of its own in reach: the run ends because it is stopped, however late that is.
    first, second = make_config().stages
    config = preflight(
        make_config(
            name="asha",
            stages=(replace(first, epochs=0.5), replace(second, epochs=10_000)),
            cluster=ClusterConfig(num_workers=1),
            tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False),
        )
    ).config
    study = replace(make_study(config, "asha", 3), shared=frozenset())
    ledger = open_ledger(study)
    for _ in range(2):  # of an earlier submission, and better than any accuracy
        record = next_record(study, ledger, 3)
        assert record is not None
        record.state, record.stages = "finished", [{"val/accuracy": 1.1}] * 2
        ledger.write(record)
    result = StudyRunner(study, SweepOptions(max_trials=3), ledger, files=files).run()
    assert result.whole
    assert result.records[2].state == "stopped"
    assert len(result.records[2].stages) == 1
    check_nothing_is_left()
    storage = open_storage(f"{config.storage}/{result.records[2].name}")
    snapshot, _ = latest_valid(storage)
    assert snapshot is not None
    assert len(snapshot.state.stage_starts) == 2
    assert not is_held(storage)
    client = MlflowClient(sqlite_uri)
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    runs = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert runs["asha-002"] == "KILLED"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_whose_worker_is_killed_is_tried_again_from_its_checkpoint(
    make_config: MakeConfig, sqlite_uri: str
) -> None:
    from mlflow.tracking import MlflowClient

    # The trial dies of it: its run is not to recover by itself.
    cluster = ClusterConfig(num_workers=1, max_failures=0)
    tracking = TrackingConfig(uri=sqlite_uri, system_metrics=False)
    config = preflight(make_config(name="retry", cluster=cluster, tracking=tracking)).config
    study = make_study(config, "none", 1)
    run = open_storage(f"{config.storage}/retry-000")
    with worker_killed_once(lambda: newest_state(run)[0]) as killed:
        result = StudyRunner(study, SweepOptions(max_trials=1), open_ledger(study), files=files).run()
    assert len(killed) == 1
    assert result.whole
    assert [(record.state, len(record.stages)) for record in result.records] == [("finished", 2)]
    check_is_as_alone(study, result.records[0])
    client = MlflowClient(sqlite_uri)
    (found,) = client.search_runs(
        [client.get_experiment_by_name("crescendo").experiment_id], "attributes.run_name = 'retry-000'"
    )
    assert found.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "val/accuracy")]
    assert len(steps) == len(set(steps)) >= 2
