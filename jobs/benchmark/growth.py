"""How costs grow with ranks, checkpoints, shards and readers, beyond what one machine could run.

The product's own code with a simulated clock, simulated ranks, and servers that only answer. CPU seconds, which other
load on the machine hardly changes. A cost that grows as its size does has the exponent 1.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jobs.benchmark.flags import check_above_0, check_at_least, read_flags
from jobs.common.display import titled, wide_console
from jobs.common.parsing import UsageError

Part = Literal["control", "checkpoints", "data", "requests"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = ("control", "checkpoints", "data", "requests")
    """What is measured."""
    ranks: tuple[int, ...] = (250, 1000, 4000)
    """Simulated ranks, eight on a node; each reports every ten simulated seconds."""
    hours: float = 1.0
    """Simulated time of the control plane, in hours."""
    checkpoints: tuple[int, ...] = (100, 400, 1600)
    """Checkpoints that a run keeps."""
    shards: tuple[int, ...] = (1000, 10_000, 100_000)
    """Shards of a dataset; in the sample order, each has 10,000 samples."""
    readers: tuple[int, ...] = (64, 256)
    """Readers of one S3 server, 64 in a process."""
    reads: int = 20
    """Reads of each."""
    busy_share: float = 0.3
    """Share of the requests to S3 that are answered with 503."""
    latency_s: float = 0.05
    """Seconds that S3 takes for an answer."""
    plot: str = ""
    """File for the plot, a PNG."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        check_above_0(self, "hours")
        check_at_least(self, 1, "reads")
        check_at_least(self, 0, "latency_s", "busy_share")
        if self.busy_share > 0.9:
            raise UsageError(f"--busy-share {self.busy_share}: must be at most 0.9")
        for name, low in (("ranks", 16), ("checkpoints", 1), ("shards", 8), ("readers", 1)):
            if any(size < low for size in getattr(self, name)):
                raise UsageError(f"--{name} {' '.join(map(str, getattr(self, name)))}: each must be at least {low}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What something costs at several sizes."""

    what: str
    per: str
    """What the sizes count."""
    sizes: tuple[int, ...]
    cpu_s: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """x where the cost grows as the size to the x, from the first to the last size; nan for one size."""
        if len(self.sizes) < 2 or min(self.cpu_s) <= 0:
            return math.nan
        return math.log(self.cpu_s[-1] / self.cpu_s[0]) / math.log(self.sizes[-1] / self.sizes[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that was measured."""

    curves: list[Curve]
    rss_mb: dict[str, tuple[float, ...]]
    """Memory of the control plane at each eighth of the time, by ranks."""
    facts: dict[str, str]
    """What is no cost, in words."""


def main(argv: Sequence[str]) -> int:
    """Measure; print tables, and write the plot."""
    options = read_flags(Options, argv, __doc__)
    found = measure(options)
    if options.plot:
        Path(options.plot).write_bytes(plot(found))
    if options.json:
        values = [asdict(curve) | {"exponent": curve.exponent} for curve in found.curves]
        print(json.dumps({"curves": values, "rss_mb": found.rss_mb, "facts": found.facts}, indent=1))
    else:
        wide_console().print(Group(*tables(found)))
    return 0


def measure(options: Options) -> Findings:
    """Measure the parts that are asked for."""
    found = Findings(curves=[], rss_mb={}, facts={})
    parts = {"control": _control, "checkpoints": _checkpoints, "data": _data, "requests": _requests}
    for part in options.parts:
        parts[part](options, found)
    return found


def _control(options: Options, found: Findings) -> None:
    from jobs.benchmark.growth_control import control_cost

    control_cost(16, 0.03)  # imports what later ones find there
    costs = [control_cost(ranks, options.hours) for ranks in options.ranks]
    for what in costs[0].cpu_s:
        _add(found, what, "ranks", options.ranks, [cost.cpu_s[what] / 3600 for cost in costs])
    for cost in costs:
        found.rss_mb[str(cost.ranks)] = cost.rss_mb
        found.facts[f"{cost.ranks} ranks"] = (
            f"{cost.values:,} values to MLflow, {cost.doubled} doubled; memory {cost.rss_mb[1]:.0f} MB after a "
            f"quarter, {cost.rss_mb[-1]:.0f} MB at the end"
        )


def _checkpoints(options: Options, found: Findings) -> None:
    from jobs.benchmark.growth_control import checkpoint_cost

    costs = [checkpoint_cost(count) for count in options.checkpoints]
    _add(found, "one more checkpoint", "checkpoints", options.checkpoints, costs)


def _data(options: Options, found: Findings) -> None:
    from jobs.benchmark.growth_data import PER_SHARD, bytes_per_sample, data_cost

    costs = [data_cost(shards) for shards in options.shards]
    sizes = options.shards
    _add(found, "indexing", "shards", sizes, [cost.index_cpu_s for cost in costs])
    _add(found, "the manifest", "shards", sizes, [cost.load_cpu_s for cost in costs])
    _add(found, "first batch of a rank", "shards", sizes, [max(cost.order_cpu_s.values()) for cost in costs])
    for cost in costs:
        order = ", ".join(f"{1000 * seconds:.0f} ms at {name}" for name, seconds in cost.order_cpu_s.items())
        found.facts[f"{cost.shards:,} shards"] = (
            f"killed after {cost.killed_at:,}, {cost.read_again:,} of them read again; manifest of "
            f"{cost.manifest_bytes / 1e6:.1f} MB; first batch from {cost.shards * PER_SHARD:,} samples: {order}"
        )
    found.facts["memory of an indexing"] = f"{bytes_per_sample():.0f} bytes a sample"


def _requests(options: Options, found: Findings) -> None:
    from jobs.benchmark.growth_requests import request_cost

    costs = [
        request_cost(readers, options.reads, busy_share=options.busy_share, latency_s=options.latency_s)
        for readers in options.readers
    ]
    _add(found, f"{options.reads} reads from a busy S3", "readers", options.readers, [cost.cpu_s for cost in costs])
    for cost in costs:
        found.facts[f"{cost.readers} readers"] = (
            f"{cost.reads:,} reads, {cost.lost} lost, {cost.requests / cost.reads:.2f} requests a read, at most "
            f"{cost.most_requests}; the longest took {cost.longest_s:.1f} s"
        )


def _add(found: Findings, what: str, per: str, sizes: Sequence[int], cpu_s: Sequence[float]) -> None:
    found.curves.append(Curve(what=what, per=per, sizes=tuple(sizes), cpu_s=tuple(cpu_s)))


def tables(found: Findings) -> list[Any]:
    """Return the results for the terminal: a table for each kind of size, and the facts."""
    made: list[Any] = []
    for per in dict.fromkeys(curve.per for curve in found.curves):
        curves = [curve for curve in found.curves if curve.per == per]
        table = Table()
        table.add_column("CPU seconds" + (" per second of the run" if per == "ranks" else ""))
        for size in curves[0].sizes:
            table.add_column(f"{size:,}", justify="right")
        table.add_column("exponent", justify="right")
        for curve in curves:
            table.add_row(curve.what, *(f"{value:.3g}" for value in curve.cpu_s), f"{curve.exponent:.2f}")
        made.append(titled(f"by {per}", table))
    made += [Text(f"{what}: {fact}") for what, fact in found.facts.items()]
    return made


def plot(found: Findings) -> bytes:
    """Return the costs and sizes relative to the first ones, as a PNG, and where it was measured the memory."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = 1 + bool(found.rss_mb)
    figure, axes = pyplot.subplots(1, panels, figsize=(1 + 5 * panels, 4.2), squeeze=False)
    costs, memory = axes[0, 0], axes[0, -1]
    curves = [curve for curve in found.curves if len(curve.sizes) > 1]
    for curve in curves:
        relative = [cost / curve.cpu_s[0] for cost in curve.cpu_s]
        label = f"{curve.what} ({curve.per})"
        costs.plot([size / curve.sizes[0] for size in curve.sizes], relative, "o-", markersize=3, label=label)
    largest = max((curve.sizes[-1] / curve.sizes[0] for curve in curves), default=1.0)
    costs.plot([1, largest], [1, largest], ":", color="0.4", label="linear")
    costs.set(xscale="log", yscale="log", xlabel="size / smallest size", ylabel="CPU seconds / those of the smallest")
    for ranks, values in found.rss_mb.items():
        shares = [(eighth + 1) / 8 for eighth in range(len(values))]
        memory.plot(shares, values, "o-", markersize=3, label=f"{ranks} ranks")
    if found.rss_mb:
        memory.set(xlabel="share of the simulated time", ylabel="memory of the control plane, MB", ylim=(0, None))
    for each in axes.flat:
        each.grid(alpha=0.25)
        each.legend(fontsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100, bbox_inches="tight")
    pyplot.close(figure)
    return out.getvalue()
