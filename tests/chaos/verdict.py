"""What kills have changed of a run: its weights, its samples, its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from infra.storage.open import open_storage
from tests.chaos.killer import Kill
from tests.chaos.run import Place, Run
from tests.support.used_samples import final_steps, groups, lost_and_doubled

KEPT = ("train/", "val/", "stage/")
"""Names of metrics that each step has, whatever the machine does, begin so."""
TIMES = ("per_s", "_s", "share")
EQUAL = ("train/loss", "val/loss", "val/accuracy")
"""Metrics whose values depend on the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Beside the undisturbed run."""

    name: str
    kills: list[Kill]
    groups: list[int]
    """Number of workers of each group."""
    submissions: int
    orphans: int
    """Processes and reservations that were left over."""
    samples: int
    samples_lost: int
    samples_doubled: int
    rows: int
    rows_lost: int
    rows_doubled: int
    doubled: list[str]
    """The first of these, as NAME at STEP."""
    different: list[str] | None
    """Tensors and metrics whose values differ; None: not to be compared, rounding differs."""

    def faults(self) -> list[str]:
        """Return what was lost, used twice, changed or left over, in words."""
        names = ("samples_lost", "samples_doubled", "rows_lost", "rows_doubled", "orphans")
        counts = {name: getattr(self, name) for name in names}
        found = [f"{self.name}: {name.replace('_', ' ')}: {count}" for name, count in counts.items() if count]
        found += [f"{self.name}: doubled: {name}" for name in self.doubled]
        return found + [f"{self.name}: different: {name}" for name in (self.different or ())[:10]]

    def table(self) -> dict[str, str]:
        """Return what is to be printed."""
        kinds = Counter(kill.kind for kill in self.kills)
        times = [kill.recovered_s - kill.killed_s for kill in self.kills if kill.recovered_s]
        same = "not compared" if self.different is None else "differ" if self.different else "equal bit for bit"
        return {
            "kills": str(len(self.kills)),
            **{f"  {kind}": str(count) for kind, count in sorted(kinds.items())},
            "recoveries": str(len(times)),
            "seconds to the next step, median": f"{median(times):.1f}" if times else "-",
            "seconds to the next step, most": f"{max(times):.1f}" if times else "-",
            "submissions": str(self.submissions),
            "groups of workers": " ".join(map(str, self.groups)),
            "samples": str(self.samples),
            "samples lost": str(self.samples_lost),
            "samples used twice": str(self.samples_doubled),
            "points of metrics": str(self.rows),
            "metrics lost": str(self.rows_lost),
            "metrics doubled": str(self.rows_doubled),
            "processes and reservations left over": str(self.orphans),
            "weights, optimizer, losses": same,
        }


def compare(place: Place, run: Run, whole: Run, kills: Sequence[Kill], *, exact: bool) -> Verdict:
    """Hold a run that has ended against the undisturbed one; `exact`: with the same number of workers."""
    trained = groups(run.keep_samples())
    stop = _newest(place, whole).state.cursor
    lost, doubled = lost_and_doubled(final_steps(trained, stop), stop=stop)
    points, expected = _points(place, run), _points(place, whole)
    every = [(name, step) for name, found in points.items() for step, _ in found]
    points, expected = _lasting(points), _lasting(expected)
    different: list[str] | None = None
    if exact:
        different = _different_tensors(place, run, whole)
        different += [name for name in EQUAL if sorted(points.get(name, ())) != sorted(expected[name])]
    rows = {(name, step) for name, found in expected.items() for step, _ in found}
    have = Counter((name, step) for name, found in points.items() for step, _ in found)
    twice = [row for row, count in Counter(every).items() for _ in range(count - 1)]
    twice += sorted(have.keys() - rows)
    return Verdict(
        name=run.name,
        kills=list(kills),
        groups=[group.world_size for group in trained],
        submissions=run.submissions,
        orphans=place.nodes.left_over(),
        samples=stop,
        samples_lost=lost,
        samples_doubled=doubled,
        rows=len(rows),
        rows_lost=len(rows - have.keys()),
        rows_doubled=len(twice),
        doubled=[f"{name} at {step}" for name, step in twice[:10]],
        different=different,
    )


def _newest(place: Place, run: Run) -> Any:
    from pipeline.checkpoint.format import latest_valid

    found, _ = latest_valid(open_storage(f"{place.uri}/runs/{run.name}"))
    if found is None:
        raise RuntimeError(f"{run.name} has no checkpoint:\n{run.output.read_text()[-5000:]}")
    return found


def _different_tensors(place: Place, run: Run, whole: Run) -> list[str]:
    import torch

    found, expected = (_tensors(_newest(place, which)) for which in (run, whole))
    missing = sorted(found.keys() ^ expected.keys())
    return missing + [name for name in expected if name in found and not torch.equal(found[name], expected[name])]


def _tensors(snapshot: Any) -> dict[str, Any]:
    """Return all tensors of a snapshot by names of their own."""
    state = {
        f"{i}/{name}": value for i, values in snapshot.optimizer["state"].items() for name, value in values.items()
    }
    return {
        f"{kind}/{name}": value
        for kind, tensors in (("model", snapshot.model), ("ema", snapshot.ema), ("optimizer", state))
        for name, value in tensors.items()
    }


def _lasting(points: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Return the metrics that each step has in any run; a measured time may be missing after a restart."""
    return {name: found for name, found in points.items() if not name.endswith(TIMES)}


def _points(place: Place, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return each metric's points in MLflow: (step, value)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(place.mlflow.url)
    experiment = client.get_experiment_by_name("crescendo")
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run.name}'")
    names = [name for name in record.data.metrics if name.startswith(KEPT)]
    history = {name: client.get_metric_history(record.info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in found] for name, found in history.items()}
