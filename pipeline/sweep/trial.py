"""A trial: a complete training run with its own controller, inside Ray Tune's trainable.

The trainable takes no CPU: it waits for its run, whose workers take them. Tune hears of each stage's end from the
workers, through Ray Train (`TuneReportCallback`), and of the last one only when the run is whole, so that no scheduler
can end a run that is about to end by itself.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import wrap_function

from infra.cluster.config import ClusterError
from infra.cluster.ray_private import is_read
from infra.storage.lease import LeaseError, is_held
from infra.storage.open import open_storage
from pipeline.checkpoint.catalog import list_checkpoints, newest_state
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.control.run_status import RunStatus
from pipeline.run.controller_client import ControllerClient, ControllerError, RunFuture
from pipeline.run.launch import start_controller
from pipeline.run.preflight import Preflight, preflight
from pipeline.run.record import close_record, synced_record
from pipeline.run.summary import stage_report
from pipeline.schedule.decisions import Stop
from pipeline.sweep.config import start_name
from pipeline.sweep.tree import prefix_config, prefix_key

WAIT_S = 1.0
"""Pause between two looks at a shared start that another trial trains."""
LOOKS_PER_TRY = 15
"""Every so many looks, its lease is tried, in case that its holder is gone."""
GONE_S = 60.0
"""Longest wait for the run's earlier actor to be gone."""
STOP_S = 120.0
"""Longest wait for a trial's run to end with a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialOrder:
    """What a trial is to do."""

    config: TrainConfig
    """Its run."""
    num_stages: int
    """Stages to train for now."""
    study: str
    """Name of the study."""
    shared: frozenset[str]
    """Starts that are runs of their own."""
    origin: Mapping[str, str]
    """Tags on where the study comes from."""


_running: list[tuple[ControllerClient, RunFuture]] = []
"""The run of this process: its controller, and its end."""


def train_trial(parameters: dict[str, Any]) -> None:
    """Train a trial's run to its end, from wherever it is."""
    order: TrialOrder = pickle.loads(parameters["sealed"])  # from this study's own driver, through Ray
    config, num_stages = order.config, order.num_stages
    ready = preflight(config, prepare_tracking=False)
    if ready.resume_from is None:
        start = shared_start(order)
        if start is None:
            return
        ready = preflight(replace(config, resume_from=start), prepare_tracking=False) if start else ready
    metric = config.checkpoint.best_metric
    done = ready.resume_from.stage_results if ready.resume_from is not None else []
    done = [result for result in done[:num_stages] if "ended_s" in result]
    for number, result in enumerate(done[: num_stages - 1], start=1):
        tune.report(stage_report(number, result, metric))
    if len(done) < num_stages or _may_lack_its_end(ready, num_stages):
        callback = TuneReportCallback()
        if run_to_end(_started(ready, order, callback)).phase != "finished":
            return
        _wait_until_told(callback)
        done = _state(config).stage_results
    tune.report(stage_report(num_stages, done[num_stages - 1], metric))


def _may_lack_its_end(ready: Preflight, num_stages: int) -> bool:
    """Say whether the trial may have been killed between its last checkpoint and the end of its record."""
    if not ready.finished or num_stages < len(ready.config.stages):
        return False
    return synced_record(ready.config) in ("open", "unknown")


class TrialTrainable(wrap_function(train_trial)):  # type: ignore[misc]
    """What Tune runs."""

    def cleanup(self) -> None:
        """End the run with a checkpoint before the trainable goes: nothing is left behind, and it can continue."""
        stop_running()
        super().cleanup()


def shared_start(order: TrialOrder) -> str | None:
    """Return the checkpoint of the longest start that this trial shares, trained here if nobody else does.

    An empty text: it shares none. None: its training was stopped.
    """
    config = order.config
    start: str | None = ""
    for length in range(1, min(order.num_stages + 1, len(config.stages))):
        key = prefix_key(config, length)
        if key in order.shared:
            name, tracking = start_name(order.study, key), replace(config.tracking, extra_params=())
            prefix = replace(prefix_config(config, length), name=name, resume_from=start or "", tracking=tracking)
            start = _trained_start(prefix, length, order.origin)
            if start is None:
                break
    return start


def _trained_start(config: TrainConfig, num_stages: int, origin: Mapping[str, str]) -> str | None:
    """Return the checkpoint at the end of `num_stages` stages; train it, or wait while another trial does.

    None: it was stopped.
    """
    storage = open_storage(config.folder)
    for look in count():
        if look % LOOKS_PER_TRY and is_held(storage):
            time.sleep(WAIT_S)  # another trial is at it, or has died: that only an attempt shows
            continue
        state, _, _ = newest_state(storage)
        if state is not None and len(state.stage_starts) > num_stages:
            return f"{storage.uri}/{list_checkpoints(storage)[-1]}"
        try:
            controller = start_controller(
                preflight(config, prepare_tracking=False), num_stages=num_stages, origin=origin
            )
        except (LeaseError, ClusterError):
            time.sleep(WAIT_S)
            continue
        if run_to_end(controller).phase != "finished":
            break
        close_record(config, "FINISHED")  # its run goes no further than this
    return None


def _wait_until_told(callback: TuneReportCallback) -> None:
    """Wait until Tune has the stages' ends that came from the workers: its session can't take two reports at once."""
    while not is_read(callback):
        time.sleep(WAIT_S)
    time.sleep(WAIT_S)


def _started(ready: Preflight, order: TrialOrder, callback: TuneReportCallback) -> ControllerClient:
    """Start a run; wait for what is left of this trial's earlier actor, if it was killed, to be gone."""
    give_up = time.monotonic() + GONE_S
    while True:
        try:
            return start_controller(ready, num_stages=order.num_stages, callbacks=(callback,), origin=order.origin)
        except (LeaseError, ClusterError):
            if time.monotonic() > give_up:
                raise
            time.sleep(WAIT_S)


def run_to_end(controller: ControllerClient) -> RunStatus:
    """Run a controller; return its last status."""
    run = controller.run()
    _running[:] = [(controller, run)]
    try:
        return run.result()
    finally:
        _running.clear()
        controller.kill()


def stop_running() -> None:
    """Stop this process's run at its next decision point, and wait for its checkpoint."""
    for controller, run in tuple(_running):
        try:
            controller.ask(Stop(asked_by="the sweep"))
            run.done(STOP_S)
        except ControllerError:
            continue  # it has ended


def _state(config: TrainConfig) -> TrainState:
    state, _, _ = newest_state(open_storage(config.folder))
    assert state is not None
    return state
