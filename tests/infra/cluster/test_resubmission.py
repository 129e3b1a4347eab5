"""Following a job over the loss of its head, against a cluster that answers as Ray's dashboard does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from infra.cluster import job_submission, resubmission
from infra.cluster.config import ClusterError
from infra.cluster.job_submission import HeadAwayError, JobLostError, follow
from infra.cluster.resubmission import follow_over_losses, running_job

NOT_FOUND = RuntimeError("Request failed with status code 404: Job j does not exist.")
STARTING = RuntimeError("Request failed with status code 503: no agent is available.")
Answer = Exception | SimpleNamespace


def details(status: str = "RUNNING", *, message: str = "", error_type: str = "", code: int | None = None) -> Any:
    return SimpleNamespace(
        status=JobStatus(status), message=message, error_type=error_type or None, driver_exit_code=code
    )


class Dashboard:
    """Gives these answers about a job, in turn, the last one for good; its output breaks off each time."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if isinstance(self.answers[0], OSError):
            raise aiohttp.ClientConnectionError
        yield "a line\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_submission, "RECONNECT_S", 0.0)
    monkeypatch.setattr(resubmission, "ASK_EVERY_S", 0.0)


def followed(*answers: Answer) -> str:
    return follow(Dashboard(*answers), "j")  # type: ignore[arg-type]


def test_a_job_is_followed_over_a_dashboard_that_is_away_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    said = followed(ConnectionRefusedError(), STARTING, details(), ConnectionResetError(), details("SUCCEEDED"))
    assert said == "SUCCEEDED: "
    assert capsys.readouterr().out == "a line\n"  # once, though each connection begins with it


def test_a_dashboard_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_submission, "LOST_AFTER_S", 0.0)
    with pytest.raises(JobLostError, match=r"no longer answers \(ConnectionRefusedError\); j may still be running"):
        followed(details(), ConnectionRefusedError())


class Clock:
    """Stands in for `time`: only what it is told to passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Streaming(Dashboard):
    """Its connections last for these seconds, in turn, and no question is answered but one after the last of them."""

    def __init__(self, clock: Clock, lengths: list[float]) -> None:
        super().__init__(*[ConnectionResetError()] * len(lengths), details("SUCCEEDED"))
        self.clock, self.lengths = clock, lengths[::-1]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        length = self.lengths.pop() if self.lengths else 0.0
        self.clock.now += length
        if length:
            yield "a line\n"
        raise aiohttp.ClientConnectionError


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 600.0]), max_size=20))
def test_only_silence_is_a_loss_however_long_the_output_was_followed(lengths: list[float]) -> None:
    unanswered = longest = 0
    for length in lengths:
        unanswered = 1 if length else unanswered + 1
        longest = max(longest, unanswered)
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(job_submission, "time", clock)
        patch.setattr(job_submission, "RECONNECT_S", job_submission.LOST_AFTER_S / 4)
        client: Any = Streaming(clock, lengths)
        if longest > 5:
            with pytest.raises(JobLostError):
                follow(client, "j")
        else:
            assert follow(client, "j") == "SUCCEEDED: "


LOSSES = {
    "another head": NOT_FOUND,
    "supervisor": details(
        "FAILED", message="Job supervisor actor died: its node", error_type="JOB_SUPERVISOR_ACTOR_DIED"
    ),
    "no supervisor": details("FAILED", error_type="JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
    "out of memory": details("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=137),
    "killed": details("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=-9),
    "controller": details("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=os.EX_TEMPFAIL),
}
OWN = {
    "mistake": details("FAILED", message="exit code 2", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=2),
    "bug": details("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=1),
    "crash": details("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", code=-11),
    "environment": details("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE"),
    "stopped": details("STOPPED"),
    "well": details("SUCCEEDED", code=0),
}


@pytest.mark.parametrize("answer", LOSSES.values(), ids=LOSSES)
def test_what_the_cluster_lost_is_told_from(answer: Answer) -> None:
    with pytest.raises(JobLostError, match=r"^j was lost[^\n]+$"):
        followed(details(), answer)


@pytest.mark.parametrize("answer", OWN.values(), ids=OWN)
def test_what_ended_by_itself(answer: SimpleNamespace) -> None:
    assert followed(details(), answer).startswith(answer.status.value)


class Heads:
    """The dashboards at one address, one after the other: None where nobody answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *heads: Dashboard | Exception | None) -> None:
        self.heads, self.started, self.told = list(heads), 0, list[str]()
        monkeypatch.setattr(resubmission, "open_client", self.open)

    def open(self, dashboard: str) -> Dashboard:
        assert dashboard == "http://head:8265"
        head = self.heads.pop(0)
        if isinstance(head, Dashboard):
            return head
        raise head or HeadAwayError("no Ray dashboard answers")

    def start(self, client: Any) -> str:
        self.started += 1
        return "j"

    def follow(self, retries: int, start: Callable[[Any], str] | None = None) -> str:
        return follow_over_losses(
            "http://head:8265", retries=retries, start=start or self.start, follow=follow, tell=self.told.append
        )


def test_a_lost_job_is_started_again_once_a_head_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Dashboard(details(), details("SUCCEEDED"))
    heads = Heads(monkeypatch, Dashboard(details(), NOT_FOUND), None, STARTING, ConnectionResetError(), second)
    assert heads.follow(retries=2) == "SUCCEEDED: "
    assert heads.started == 2
    assert heads.told == ["j was lost with its head; waiting for a head to start it again (2 retries left)"]


def test_a_head_that_takes_no_job_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(client: Any) -> str:
        heads.started += 1
        if heads.started == 2:
            raise STARTING
        return "j"

    heads = Heads(monkeypatch, Dashboard(NOT_FOUND), Dashboard(NOT_FOUND), Dashboard(details("SUCCEEDED")))
    assert heads.follow(1, start) == "SUCCEEDED: "
    assert heads.started == 3


@given(losses=st.integers(0, 5), retries=st.integers(0, 5))
def test_it_is_started_as_often_as_asked(losses: int, retries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ends = [Dashboard(NOT_FOUND)] * losses + [Dashboard(details("SUCCEEDED"))]
        heads = Heads(patch, *ends)
        if losses > retries:
            with pytest.raises(JobLostError):
                heads.follow(retries)
        else:
            assert heads.follow(retries) == "SUCCEEDED: "
        assert heads.started == min(losses, retries) + 1


def test_one_that_is_lost_soon_after_each_start_is_started_after_growing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the MLflow server is away."""
    clock, starts = Clock(), list[float]()

    def start(client: Any) -> str:
        starts.append(clock.now)
        return "j"

    monkeypatch.setattr(resubmission, "ASK_EVERY_S", 5.0)
    monkeypatch.setattr(resubmission, "time", clock)
    heads = Heads(monkeypatch, *[Dashboard(LOSSES["controller"])] * 9, Dashboard(details("SUCCEEDED")))
    assert heads.follow(9, start) == "SUCCEEDED: "
    assert [after - before for before, after in pairwise(starts)] == [0, 5, 10, 20, 40, 80, 160, 300, 300]


def test_a_users_fault_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(monkeypatch, Dashboard(OWN["mistake"]))
    assert heads.follow(retries=5) == "FAILED: exit code 2"
    heads = Heads(monkeypatch, None)  # the first head must be there: a wrong address is no loss
    with pytest.raises(HeadAwayError):
        heads.follow(retries=5)
    heads = Heads(monkeypatch, Dashboard(NOT_FOUND), ClusterError("the Ray dashboard does not accept the token"))
    with pytest.raises(ClusterError, match="does not accept"):
        heads.follow(retries=5)


def test_no_head_for_an_hour_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resubmission, "HEAD_WAIT_S", 0.0)
    with pytest.raises(HeadAwayError):
        Heads(monkeypatch, Dashboard(NOT_FOUND), None).follow(retries=5)


def test_a_job_of_the_run_that_is_running_is_found() -> None:
    def job(status: str, run: str | None, name: str | None) -> SimpleNamespace:
        metadata = {"run": run} if run else None
        return SimpleNamespace(status=JobStatus(status), metadata=metadata, submission_id=name)

    jobs = [
        job("RUNNING", None, None),
        job("FAILED", "a", "a-1"),
        job("RUNNING", "a", "a-2"),
        job("RUNNING", "b", "b-1"),
    ]
    client: Any = SimpleNamespace(list_jobs=lambda: jobs)
    assert running_job(client, "a") == "a-2"
    assert running_job(client, "c") == ""
