"""Trains the trials of a study through Ray Tune: concurrency, early ending, retries."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.cluster.connect import connect
from infra.redact import one_line
from infra.storage.open import open_storage
from infra.tracking.ended import running_below
from infra.tracking.mlflow_run import log_below
from infra.tracking.spool import spooled_status
from infra.tracking.tracker import Tracker
from pipeline.config import TrainConfig
from pipeline.run.launch import CONFIG_FILE
from pipeline.run.origin import origin_tags
from pipeline.run.provenance import flat_values
from pipeline.run.record import close_record
from pipeline.sweep.config import StudyOptions, start_name
from pipeline.sweep.interrupt import Stopper
from pipeline.sweep.ledger import Ledger, Record
from pipeline.sweep.study import Study, next_record

log = logging.getLogger(__name__)

TRIAL_RESOURCES = {"cpu": 0, "memory": 1}
"""A trial only waits for its workers, and they take the CPUs, so it can't keep its own from them. Tune wants it to ask
for something: one byte."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """How a study ended."""

    records: list[Record]
    whole: bool
    """Whether all trials are done; otherwise run the same command again to resume."""
    parent_run_id: str
    """The study's own MLflow run, or an empty text if MLflow was away."""


class StudyRunner:
    """Trains a study's trials through Ray Tune, in one round; with successive halving, in one for each stage."""

    def __init__(
        self,
        study: Study,
        options: StudyOptions,
        ledger: Ledger,
        *,
        callbacks: Sequence[Any] = (),
        files: Callable[[Sequence[Record]], dict[str, bytes]],
    ) -> None:
        """Make one of Tune's callbacks, and of a function that makes the report's files, by name, of the trials."""
        self.files = files
        self.study, self.options, self.ledger, self.callbacks = study, options, ledger, callbacks
        self._stopper = Stopper(study.base.name)
        self._target = 0
        self._waiting: list[Record] = []
        self._scheduler: Any = None
        self._parent_run_id = ""
        self._origin: dict[str, str] = {}

    def run(self) -> StudyResult:
        """Train; return when the trials are done, the time is over, or the user stopped it.

        Raises:
            ClusterError: no cluster, or not enough room for one trial.
        """
        base = self.study.base
        for name, value in _TUNE_SETTINGS.items():
            os.environ.setdefault(name, value)
        connect(base.cluster, num_workers=max(base.worker_counts))
        tracker = Tracker(replace(base.tracking, system_metrics=False), base.name, storage=self.study.storage)
        self._origin = origin_tags()
        tracker.set_tags({"kind": self.study.kind, **self._origin})
        tracker.log_params(flat_values(self.study.plan))
        tracker.flush(30)
        self._parent_run_id = tracker.run_id or ""
        whole = False
        try:
            with self._stopper.after(self.options.max_hours * 3600):
                whole = self._rounds()
            if whole and self._parent_run_id:
                self._end_records()
            self._report(tracker)
        finally:
            tracker.close("FINISHED" if whole else "KILLED")
        return StudyResult(self.ledger.records, whole, self._parent_run_id)

    def _report(self, tracker: Tracker) -> None:
        """Keep the report in storage and in MLflow."""
        best = self.study.best(self.ledger.records)
        if best:
            tracker.log_metrics({"best": self.study.scores(best[0])[-1]}, step=len(self.ledger.records))
        for name, content in self.files(self.ledger.records).items():
            self.study.storage.write(f"report/{name}", content)
            tracker.log_artifact_bytes(f"report/{name}", content)
        try:
            if tracker.run_id:
                log_below(self.study.base.tracking.uri, tracker.run_id, self._final_metrics())
        except Exception as error:  # MLflow is away, or has lost the runs: the ledger has it
            log.warning("the trials' final metrics could not be sent to MLflow: %s", one_line(error))

    def _end_records(self) -> None:
        """End what killed processes left open: records of trials that are done, and of starts that they share."""
        ends = {start_name(self.study.base.name, key): "FINISHED" for key in self.study.shared}
        for record in self.ledger.records:
            if record.state in ("finished", "stopped"):
                ends[record.name] = "FINISHED" if record.state == "finished" else "KILLED"
        try:
            running = running_below(self.study.base.tracking.uri, self._parent_run_id)
            for name, status in ends.items():
                run = replace(self.study.base, name=name)
                is_open = name in running or spooled_status(open_storage(run.folder)) is not None
                if is_open and not close_record(run, status):
                    return  # MLflow is away: the same command tries it again
        except Exception as error:  # likewise, or it has lost the runs
            log.warning("the trials' records could not be looked through in MLflow: %s", one_line(error))

    def _final_metrics(self) -> dict[str, dict[str, float]]:
        """Return what trials are compared by, beside what their runs have told MLflow."""
        study = self.study
        done = [record for record in self.ledger.records if record.state in ("finished", "stopped")]
        return {
            record.name: {study.score_name: study.scores(record)[-1]}
            | {f"{study.kind}/{name}": value for name, value in record.figures.items()}
            for record in done
            if record.stages
        }

    def _rounds(self) -> bool:
        """Train up to the end of each stage in turn, or of the last one at once; return whether all is done."""
        count = len(self.study.base.stages)
        for target in range(1, count + 1) if self.study.scheduler == "halving" else [count]:
            self._target = target
            self._waiting = self._left(target)
            self._round()
            if self._stopper.stopping or self._left(target):
                return False
            if target < count:
                self._halve(target)
        return True

    def _left(self, target: int) -> list[Record]:
        """Return the trials that have to continue to the end of a stage; up to the last one, all that are open."""
        last = target == len(self.study.base.stages)
        return [
            record for record in self.ledger.records if record.state == "open" and (last or len(record.stages) < target)
        ]

    def _round(self) -> None:
        from ray import tune

        from pipeline.sweep.schedulers import StageAsha
        from pipeline.sweep.searcher import ErrorNotes, LedgerSearcher, Silence
        from pipeline.sweep.trial import TrialTrainable

        study = self.study
        if study.scheduler == "asha":
            known = [study.scores(record) for record in self.ledger.records]
            self._scheduler = StageAsha(
                num_stages=len(study.base.stages),
                eta=study.eta,
                highest=study.highest,
                end=self._stopper.end,
                known=known,
            )
        self._searcher = LedgerSearcher(self._choose, self._sealed, self._heard)
        scratch = tempfile.mkdtemp(prefix="ray-tune-")
        tuner = tune.Tuner(
            tune.with_resources(TrialTrainable, TRIAL_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=self._searcher,
                scheduler=self._scheduler,
                num_samples=-1,
                max_concurrent_trials=trials_at_a_time(study.base, self.options.concurrent),
            ),
            run_config=tune.RunConfig(
                name=study.base.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.options.max_failures),
                callbacks=[*self.callbacks, ErrorNotes(self._failed), Silence()],
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _end_killed(self, record: Record) -> None:
        run = replace(self.study.base, name=record.name)
        if open_storage(run.folder).exists(CONFIG_FILE):  # else it never went beyond a start that it shared
            close_record(run, "KILLED")

    def _choose(self) -> Record | None:
        """Return an open trial of an earlier submission or round, else a new one."""
        if self._stopper.stopping:
            return None
        if self._waiting:
            return self._waiting.pop(0)
        return next_record(self.study, self.ledger, self.options.max_trials)

    def _heard(self, record: Record, ended: bool, trial_id: str) -> None:
        """Write down what a trial gave. One that was only interrupted stays open.

        Its last stage is reported only when its run is whole: so it is finished then, whatever happens to its actor or
        to this process before Tune says that it has ended.
        """
        before = record.state
        if len(record.stages) == len(self.study.base.stages):
            record.state = "finished"
        elif ended and record.number in self._searcher.failed:
            record.state = "failed"
        elif ended and self._scheduler is not None and trial_id in self._scheduler.ended:
            record.state = "stopped"
        if record.state != before:
            self._tell(record)
        self.ledger.write(record)

    def _failed(self, number: int, why: str) -> None:
        record = self.ledger.records[number]
        record.error = why
        self.ledger.write(record)

    def _tell(self, record: Record) -> None:
        scores = [] if record.state == "failed" else self.study.scores(record)
        self.study.strategy.tell(record.point, scores, finished=record.state == "finished")

    def _halve(self, stage: int) -> None:
        """End all trials but the best of those that have reached the end of a stage, counted from 1."""
        from pipeline.sweep.schedulers import survivors

        reached = {
            record.number: self.study.scores(record)[stage - 1]
            for record in self.ledger.records
            if len(record.stages) >= stage
        }
        going_on = survivors(reached, self.study.eta, highest=self.study.highest)
        for record in self.ledger.records:
            if record.state == "open" and record.number in reached and record.number not in going_on:
                record.state = "stopped"
                self.ledger.write(record)
                self._end_killed(record)
                self._tell(record)

    def _sealed(self, record: Record) -> dict[str, Any]:
        """Return what Tune hands to a trial: its run, opened only there."""
        from pipeline.sweep.trial import TrialOrder

        study = self.study
        base = study.configure(record.point)
        values = record.point | {name: f"{value:.6g}" for name, value in record.figures.items()}
        params = tuple((f"{study.kind}.{name}", str(value)) for name, value in values.items())
        tracking = replace(base.tracking, parent_run_id=self._parent_run_id, extra_params=params)
        order = TrialOrder(
            config=replace(base, name=record.name, tracking=tracking),
            num_stages=self._target,
            study=study.base.name,
            shared=study.shared,
            origin=self._origin,
        )
        return {"number": record.number, "name": record.name, "sealed": pickle.dumps(order)}


_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow have it all
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is stopped in its first stage has none to report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it gives trials five seconds for their checkpoints
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def trials_at_a_time(config: TrainConfig, asked: int) -> int:
    """Return how many trials fit at a time, at most `asked` if that is above 0."""
    import ray

    total, workers = ray.cluster_resources(), max(config.worker_counts)
    needed = {"CPU": config.cluster.reserved_cpus, "GPU": config.cluster.gpus_per_worker}
    room = min(int(total.get(name, 0) // (each * workers)) for name, each in needed.items() if each)
    return max(1, min(room, asked) if asked else room)
