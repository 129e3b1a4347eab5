"""The evaluations of runs, and the figures of a variant over its seeds. Pure: no storage, no cluster."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.state import TrainState
from pipeline.schedule.decisions import NextStage, records_of
from pipeline.schedule.stages import REGULARIZATION, mean_pixels

Clock = Literal["train_s", "cpu_s", "pixels"]
CLOCKS: tuple[Clock, ...] = ("train_s", "cpu_s", "pixels")
"""What accuracy is drawn over: seconds of training without evaluations, CPU seconds of it, images times pixels."""
BESIDE = 0.01
"""Share of a run below which two evaluations count as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of a run, and what had gone into the run by then."""

    cursor: int
    score: float
    train_s: float
    """Seconds of training, without evaluations and start-up."""
    cpu_s: float
    """CPU seconds of training."""
    eval_s: float
    """Seconds of all evaluations so far."""
    pixels: float
    """Images trained on, times their pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedStage:
    """A stage as a run went through it: its rules may have ended it early, or chosen its regularization."""

    epochs: float
    """Its length, in passes over the training data."""
    regularization: dict[str, float]
    """By the fields' names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """A finished run."""

    variant: str
    seed: int
    name: str
    """The run's."""
    where: str
    """Its storage."""
    fingerprint: str
    evaluations: tuple[Evaluation, ...]
    metrics: dict[str, float]
    """The last evaluation's."""
    samples: int
    """Images trained on."""
    peak_bytes: int
    machine: str
    stages: tuple[TrainedStage, ...] = ()
    """Its stages; none of another library's loop."""
    reused: bool = False
    """Whether it had been trained before."""

    @property
    def score(self) -> float:
        """The final score."""
        return self.evaluations[-1].score

    @property
    def images_per_s(self) -> float:
        """Images per second of training, over the whole run."""
        return self.samples / self.evaluations[-1].train_s


def history_of(
    state: TrainState, metadata: RunMetadata, metric: str, *, samples_per_epoch: int, **about: Any
) -> History:
    """Return the history in a finished run's last checkpoint.

    Raises:
        KeyError: an older version wrote it, without times.
    """
    stages, ratio = metadata.config["stages"], metadata.config["data"].get("aspect_ratio", 1.0)
    results = state.stage_results
    return History(
        evaluations=tuple(
            Evaluation(
                cursor=int(row["cursor"]),
                score=row[metric],
                train_s=row["train_s"],
                cpu_s=row["cpu_s"],
                eval_s=row["eval_s"],
                pixels=pixels_at(int(row["cursor"]), state.stage_starts, [_pixels(stage, ratio) for stage in stages]),
            )
            for row in _spaced(state)
        ),
        metrics={name: value for name, value in state.evaluation.items() if name != "cursor"},
        samples=state.cursor,
        peak_bytes=int(max(result.get("peak_bytes", 0) for result in results)),
        machine=metadata.machine,
        stages=_trained_stages(state, metadata.config, samples_per_epoch),
        **about,
    )


def _trained_stages(state: TrainState, config: Mapping[str, Any], samples_per_epoch: int) -> tuple[TrainedStage, ...]:
    chosen = {
        stage + 1: decision.values
        for _, stage, decision in records_of(state.decisions)
        if isinstance(decision, NextStage)
    }
    return tuple(
        TrainedStage(
            epochs=(stop - start) / samples_per_epoch,
            regularization=_regularization({**stage, **chosen.get(index, {})}, config["model"]["stochastic_depth"]),
        )
        for index, (stage, (start, stop)) in enumerate(zip(config["stages"], pairwise(state.stage_starts), strict=True))
    )


def _regularization(stage: Mapping[str, Any], depth: float) -> dict[str, float]:
    """Return a stage's regularization; `depth` is the model's stochastic depth, for a stage without its own."""
    return {name: depth if stage[name] is None else stage[name] for name in REGULARIZATION}


def _spaced(state: TrainState) -> list[dict[str, float]]:
    """Return the evaluations without those right beside a stage's end: an epoch's end there says nothing more, and may
    have been made at the next stage's image size."""
    ends, near = state.stage_starts[1:], BESIDE * state.cursor
    return [
        row
        for row in state.evaluations
        if row["cursor"] in ends or all(abs(row["cursor"] - end) > near for end in ends)
    ]


def _pixels(stage: Mapping[str, Any], ratio: float) -> float:
    sizes, share = stage.get("random_sizes", ()), stage.get("random_size_share", 0.0)
    return mean_pixels(stage["image_size"], sizes, share, aspect_ratio=ratio)


def pixels_at(cursor: int, starts: Sequence[int], pixels: Sequence[float]) -> float:
    """Return images times pixels up to a cursor, of stages that begin at `starts`, of so many pixels an image."""
    ends = [*starts[1:], max(cursor, starts[-1])]
    spans = zip(starts, ends, pixels, strict=False)
    return float(sum(max(0, min(cursor, end) - start) * count for start, end, count in spans))


def mean_curve(runs: Sequence[History], clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """Return (clock, score), the means over the runs at equal shares of their lengths.

    The runs of a variant have their evaluations at the same places, unless their stages' lengths were chosen by how
    they went.
    """
    places = sorted({round(one.cursor / run.evaluations[-1].cursor, 6) for run in runs for one in run.evaluations})

    def at(run: History, name: str) -> np.ndarray:
        known = [one.cursor / run.evaluations[-1].cursor for one in run.evaluations]
        return np.interp(places, known, [getattr(one, name) for one in run.evaluations])

    return np.mean([at(run, clock) for run in runs], axis=0), np.mean([at(run, "score") for run in runs], axis=0)


def time_to(clock: Iterable[float], score: Iterable[float], target: float, *, highest: bool = True) -> float | None:
    """Return when a curve first reaches the target, between two evaluations on the line between them; None: never."""
    sign = 1.0 if highest else -1.0
    points = list(zip(clock, (sign * value for value in score), strict=True))
    goal = sign * target
    if points[0][1] >= goal:
        return float(points[0][0])
    for (t0, s0), (t1, s1) in pairwise(points):
        if s1 >= goal:
            return float(t0 + (t1 - t0) * (goal - s0) / (s1 - s0))
    return None


def time_of(run: History, clock: Clock, target: float, *, highest: bool = True) -> float | None:
    """Return when a run first reaches the target."""
    values = [getattr(one, clock) for one in run.evaluations]
    return time_to(values, [one.score for one in run.evaluations], target, highest=highest)


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; None for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """A variant's figures over its seeds."""

    variant: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    score: float
    """Mean of the final scores."""
    score_std: float | None
    """Their standard deviation; None for one seed."""
    totals: dict[str, float]
    """Medians over the seeds of the whole run's train_s, cpu_s, eval_s and pixels."""
    train_s_range: tuple[float, float]
    reached: int
    """Seeds that reach the target."""
    to_target: dict[str, float | None]
    """By clock, when the mean curve reaches the target."""
    ratio: dict[str, float | None]
    """By clock, that over the baseline's."""
    images_per_s: float
    """Median over the seeds, over the whole training."""
    images_per_cpu_s: float
    peak_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    """Means of the last evaluations' metrics."""


def figures(
    histories: Mapping[str, Sequence[History]], baseline: str, target: float | None, *, highest: bool = True
) -> tuple[float, dict[str, Figures]]:
    """Return the target, and each variant's figures. Without a target it is the baseline's mean final score."""
    goal = statistics.mean(run.score for run in histories[baseline]) if target is None else target
    times = {
        name: {clock: time_to(*mean_curve(runs, clock), goal, highest=highest) for clock in CLOCKS}
        for name, runs in histories.items()
    }
    return goal, {
        name: _figures(name, runs, times[name], times[baseline], goal, highest) for name, runs in histories.items()
    }


def _figures(
    name: str,
    runs: Sequence[History],
    times: Mapping[Clock, float | None],
    of_baseline: Mapping[Clock, float | None],
    goal: float,
    highest: bool,
) -> Figures:
    scores = tuple(run.score for run in runs)
    mean, std = mean_std(scores)
    last = [run.evaluations[-1] for run in runs]
    names = ("train_s", "cpu_s", "eval_s", "pixels")
    seconds = [one.train_s for one in last]
    return Figures(
        variant=name,
        seeds=tuple(run.seed for run in runs),
        scores=scores,
        score=mean,
        score_std=std,
        totals={clock: statistics.median(getattr(one, clock) for one in last) for clock in names},
        train_s_range=(min(seconds), max(seconds)),
        reached=sum(time_of(run, "train_s", goal, highest=highest) is not None for run in runs),
        to_target={str(clock): value for clock, value in times.items()},
        ratio={clock: _ratio(times[clock], of_baseline[clock]) for clock in CLOCKS},
        images_per_s=statistics.median(run.images_per_s for run in runs),
        images_per_cpu_s=statistics.median(run.samples / run.evaluations[-1].cpu_s for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
        metrics={
            metric: statistics.mean(run.metrics[metric] for run in runs)
            for metric in runs[0].metrics
            if all(metric in run.metrics for run in runs)
        },
    )


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of
