"""`ControllerClient`: a run's controller, called from any process that reaches its Ray cluster.

Each call names a method of `StageController`: a renamed method or another argument fails the type checker. Calls
that wait for an answer are bounded in time; those that tell something (`note`, `report`, ...) return at once, and the
controller hears what a process tells in the order in which it was told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from infra.cluster.connect import ACTOR_PREFIX, IN_ORDER, NAMESPACE
from infra.cluster.discovery import controllers
from infra.redact import last_line
from infra.storage.failures import FailureClass
from pipeline.control.controller import StageController
from pipeline.control.replies import DecisionReply, JoinReply
from pipeline.control.run_status import RunStatus, read_status
from pipeline.schedule.decisions import Decision
from pipeline.schedule.policy import Progress

P = ParamSpec("P")
Answer = TypeVar("Answer")

PATIENCE_S = 600.0
"""For how long a worker or a driver waits for an answer, as long as for other ranks: the controller's machine may be
very busy."""
QUICK_S = 10.0
"""For how long a command line waits for an answer."""


class ControllerError(Exception):
    """The controller gives no answer."""

    failure = FailureClass.TRANSIENT


class ControllerAwayError(ControllerError):
    """It gives none now; it may later."""


class ControllerLostError(ControllerError):
    """The controller has ended, or was lost with its process or node."""


class ControllerClient:
    """The controller of one run. May be sent to other processes through Ray.

    Args:
        handle: of its actor.
        patience_s: how long a call that waits for an answer does so.

    Raises:
        ControllerLostError: by each call that waits, when there is no controller any more.
        ControllerAwayError: by each call that waits, when none came in time.
    """

    def __init__(self, handle: Any, *, patience_s: float = PATIENCE_S) -> None:
        self._handle, self._patience_s = handle, patience_s

    @classmethod
    def of_run(cls, name: str, *, patience_s: float = QUICK_S) -> ControllerClient:
        """Return the controller of a run on the cluster that this process is attached to.

        Raises:
            ControllerLostError: there is none.
        """
        import ray

        try:
            return cls(ray.get_actor(f"{ACTOR_PREFIX}{name}", NAMESPACE), patience_s=patience_s)
        except ValueError as error:
            raise ControllerLostError(f"{name} has no controller on this cluster") from error

    @property
    def actor_id(self) -> str:
        """What tells this controller from another one of the same run."""
        return str(self._handle)  # with its hexadecimal id

    # From the driver -------------------------------------------------------------------------------------------------

    def run(self) -> RunFuture:
        """Have the controller train the run; returns at once."""
        return RunFuture(self._start(StageController.run))

    def kill(self) -> None:
        """End the controller's process, and with it the run's workers."""
        import ray

        ray.kill(self._handle)

    # From operators --------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """Return what is known of the run."""
        return _status(self._wait(StageController.status))

    def ask(self, decision: Decision) -> str:
        """Ask for a decision; returns what will happen."""
        return self._wait(StageController.ask, decision)

    def request(self, decision: Decision) -> None:
        """Ask for a decision, without waiting for what will happen."""
        self._start(StageController.ask, decision)

    def track(self, uri: str, asked_by: str) -> str:
        """Have the record continue with the MLflow server of another address; returns what will happen."""
        return self._wait(StageController.track, uri, asked_by)

    # From a worker group: calls that wait ----------------------------------------------------------------------------

    def join(self, rank: int, node: str, environment: str, world_size: int) -> JoinReply:
        """Tell that a rank has started; return all that it needs."""
        return self._wait(StageController.join, rank, node, environment, world_size)

    def decide(self, progress: Progress) -> DecisionReply:
        """Tell rank 0's progress; return what all ranks do next."""
        return self._wait(StageController.decide, progress)

    def error(self) -> str:
        """Return the error that ended the run, or an empty text."""
        return self._wait(StageController.error)

    def ran_out_of_memory(self, stage: int, samples: int) -> None:
        """Tell that a pass of so many samples didn't fit; the controller knows it when this returns."""
        self._wait(StageController.ran_out_of_memory, stage, samples)

    def failed(self, message: str) -> None:
        """Tell of an error that trying again doesn't cure; the run has ended when this returns."""
        self._wait(StageController.failed, message)

    def ended(self, decision: Decision) -> None:
        """Tell how the group has ended; the controller knows it when this returns."""
        self._wait(StageController.ended, decision)

    def environment(self) -> str:
        """Return the runtime environment of the run's workers."""
        return self._wait(StageController.environment)

    def reached(self) -> int:
        """Return the highest cursor that was reported so far, -1 before any."""
        return self._wait(StageController.reached)

    def tell(self, line: str) -> None:
        """Tell the user a line; the controller knows it when this returns, whatever becomes of the caller."""
        _fetch(self._tell(StageController.note, line), self._patience_s)

    # From a worker group: calls that only tell -----------------------------------------------------------------------

    def note(self, line: str) -> None:
        """Tell the user a line."""
        self._tell(StageController.note, line)

    def report(self, rank: int, cursor: int, wait_share: float) -> None:
        """Tell how far a rank is, and for which share of the time it waited for data."""
        self._tell(StageController.report, rank, cursor, wait_share)

    def loaded(self, node: str, values: dict[str, float]) -> None:
        """Tell the load of a node without rank 0."""
        self._tell(StageController.loaded, node, values)

    def on_resume(self, source: str, cursor: int, stage: int, taken_s: float | None) -> None:
        """Tell of the checkpoint that a group begins at."""
        self._tell(StageController.on_resume, source, cursor, stage, taken_s)

    def on_capacity(self, num_workers: int, possible: int) -> None:
        """Tell that the cluster has room for more workers than the group has.

        In no order with others: the controller asks all runs of the cluster first, which may take long.
        """
        self._start(StageController.on_capacity, num_workers, possible)

    def on_node_draining(self, node: str) -> None:
        """Tell that a node of the group is draining."""
        self._tell(StageController.on_node_draining, node)

    def saved(self, uri: str, cursor: int) -> None:
        """Tell that a checkpoint is whole."""
        self._tell(StageController.saved, uri, cursor)

    def not_saved(self, line: str) -> None:
        """Tell that storage didn't take a checkpoint."""
        self._tell(StageController.not_saved, line)

    # How -------------------------------------------------------------------------------------------------------------

    def within(self, patience_s: float) -> ControllerClient:
        """Return a client that waits for its answers only so long."""
        return ControllerClient(self._handle, patience_s=patience_s)

    def _start(
        self, method: Callable[Concatenate[StageController, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call a method of the controller; return a reference to its answer."""
        return getattr(self._handle, method.__name__).remote(*args, **kwargs)

    def _tell(
        self, method: Callable[Concatenate[StageController, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call a method of the controller after those that were told before; return a reference to its answer."""
        in_order = getattr(self._handle, method.__name__).options(concurrency_group=IN_ORDER)
        return in_order.remote(*args, **kwargs)

    def _wait(
        self, method: Callable[Concatenate[StageController, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        """Call a method of the controller; return its answer."""
        answer: Answer = _fetch(self._start(method, *args, **kwargs), self._patience_s)
        return answer


class RunFuture:
    """The end of a run that trains meanwhile."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self, timeout_s: float) -> bool:
        """Say whether the run has ended, after at most so many seconds."""
        import ray

        return bool(ray.wait([self._reference], timeout=timeout_s)[0])

    def result(self, timeout_s: float | None = None) -> RunStatus:
        """Wait for the run's end; return its last status.

        Raises:
            RuntimeError: the run failed, for this reason.
            ControllerLostError: its controller was lost.
            ControllerAwayError: it has not ended in time, or its answer is lost while the run continues.
        """
        import ray

        try:
            return _status(_fetch(self._reference, timeout_s))
        except ray.exceptions.RayError as error:
            raise RuntimeError(last_line(error)) from error


def find_controllers(*, patience_s: float = QUICK_S) -> dict[str, ControllerClient]:
    """Return the controllers on the cluster that this process is attached to, by their runs' names."""
    return {name: ControllerClient(handle, patience_s=patience_s) for name, handle in controllers().items()}


def _status(answer: RunStatus | dict[str, Any]) -> RunStatus:
    """Return a status; a controller that runs an older version gives plain values."""
    return answer if isinstance(answer, RunStatus) else read_status(answer)


def _fetch(reference: Any, timeout_s: float | None) -> Any:
    """Return a call's answer, with Ray's errors about the actor itself as those of this module."""
    import ray

    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.ActorUnavailableError as error:
        raise ControllerAwayError("the run's controller can't be reached now") from error
    except ray.exceptions.RayActorError as error:
        raise ControllerLostError("the run's controller was lost, with its process or its node") from error
    except ray.exceptions.GetTimeoutError as error:
        raise ControllerAwayError(f"the run's controller has given no answer for {timeout_s:.0f} s") from error
