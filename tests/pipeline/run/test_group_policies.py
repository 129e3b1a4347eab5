from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.run import ray_policies
from pipeline.run.ray_policies import GroupTrainer, LanePolicy, OwnClusterPolicy, ProgressPolicy, allowed_count


@pytest.mark.parametrize(
    ("available", "low", "high", "count"),
    [(2, 1, 2, 2), (1, 1, 2, 1), (0, 1, 2, 0), (7, 1, 8, 6), (5, 5, 8, 0), (11, 2, 8, 6), (12, 1, 12, 12)],
)
def test_workers_are_the_most_that_share_the_lanes(available: int, low: int, high: int, count: int) -> None:
    assert allowed_count(available, low, high, num_lanes=12) == count


def test_failures_count_only_while_the_run_gets_no_further() -> None:
    reached = [-1]
    policy = ProgressPolicy(FailureConfig(max_failures=2), reached=lambda: reached[0])
    failure = WorkerGroupError("lost", {0: RuntimeError("killed")})
    for cursor in (0, 24, 48, 72, 96, 120):  # one failure after another, each later than the one before
        reached[0] = cursor
        assert policy.make_decision(failure) is FailureDecision.RETRY
    reached[0] = 60  # back at a checkpoint, and no further than ever before
    assert policy.make_decision(failure) is FailureDecision.RETRY
    assert policy.make_decision(failure) is FailureDecision.RAISE


def test_a_worker_lost_while_its_group_starts_is_a_loss_like_any_other() -> None:
    policy = ProgressPolicy(FailureConfig(max_failures=2), reached=lambda: 0)
    assert policy.make_decision(ControllerError(RayActorError())) is FailureDecision.RETRY
    assert policy.make_decision(ControllerError(KeyError("a mistake"))) is FailureDecision.RAISE


@pytest.mark.parametrize(
    ("reserved", "pauses"), [(None, 1), ({}, 1), ({"node": {"CPU": 2.0}}, 0)], ids=["unknown", "no room", "room"]
)
def test_a_group_that_waits_for_room_leaves_the_cpu_to_others(
    monkeypatch: pytest.MonkeyPatch, reserved: dict[str, dict[str, float]] | None, pauses: int
) -> None:
    config = ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1})
    policy = LanePolicy(config, num_lanes=12, controller=None, standby=False)
    slept: list[float] = []
    monkeypatch.setattr(ray_policies.time, "sleep", slept.append)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: reserved)
    policy.make_decision_for_non_running_worker_group()  # which Ray's loop asks for again and again
    assert slept == [ray_policies.WAIT_S] * pauses


@pytest.mark.parametrize(
    ("num_workers", "own", "policy"),
    [
        (2, True, OwnClusterPolicy),
        (2, False, FixedScalingPolicy),
        ((1, 2), True, LanePolicy),
        ((1, 2), False, LanePolicy),
    ],
)
def test_only_a_fixed_group_on_a_cluster_of_its_own_asks_no_one_for_nodes(
    monkeypatch: pytest.MonkeyPatch, num_workers: int | tuple[int, int], own: bool, policy: type
) -> None:
    taken: list[Any] = []

    class Controller:
        """Takes the place of Ray Train's, which would start a group."""

        def __init__(self, scaling_policy: object, **_: object) -> None:
            taken.append(scaling_policy)

        async def run(self) -> None:
            """Train nothing."""

        def get_result(self) -> None:
            """Have no result."""

    monkeypatch.setattr(ray_policies, "TrainController", Controller)
    config = ScalingConfig(num_workers=num_workers)
    trainer = GroupTrainer(
        lambda: None, scaling_config=config, num_lanes=12, controller=None, standby=False, own_cluster=own
    )
    trainer._initialize_and_run_controller(scaling_policy=FixedScalingPolicy(config))
    assert [type(each) for each in taken] == [policy]


def test_on_a_cluster_of_its_own_a_group_gets_its_workers_without_rays_coordinator() -> None:
    policy = OwnClusterPolicy(ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}))
    policy.after_controller_start(None)  # none of these calls anything of Ray, which isn't started here
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(2, {"CPU": 1})
    assert policy.make_decision_for_running_worker_group(None, None) == NoopDecision()
    asyncio.run(policy.before_controller_shutdown())
    policy.before_controller_abort()
    assert policy._coordinator_client is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_new_controller_takes_over_what_a_killed_one_had_asked_for() -> None:
    # On a busy machine it takes longer to start than a policy waits for it.
    ray.get(ray_policies.get_or_create_autoscaling_coordinator().__ray_ready__.remote())
    config = ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1})
    possible = []
    for name in ("one", "one", "another"):
        policy = LanePolicy(config, num_lanes=12, controller=None, standby=False)
        # As Ray starts it; each run id is new. None of them is cancelled: their controllers are killed.
        policy.after_controller_start(SimpleNamespace(run_id=f"{len(possible)}", run_config=RunConfig(name=name)))
        reserved = policy._get_reserved_resources()
        assert reserved is not None
        possible.append(policy._count_possible_workers(reserved))
    assert possible == [2, 2, 0]
    for name in ("one", "another"):
        TrainAutoscalingCoordinatorClient(f"train-{name}").cancel_resource_request()
