"""The report of a study as files: best trials, importance of each range, plots."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from pipeline.sweep.ledger import Record
from pipeline.sweep.study import Study

MIN_TRIALS = 4
"""Finished trials that it takes to say which range matters."""
MAX_AXES = 6
"""Ranges in the plot of parallel coordinates: those that matter most. More can't be told apart."""


def as_optuna(study: Study, records: Sequence[Record]) -> optuna.Study:
    """Return the finished trials as an Optuna study, for its analyses and plots."""
    found = optuna.create_study(direction="maximize" if study.highest else "minimize")
    for record in records:
        if record.state == "finished":
            found.add_trial(
                optuna.trial.create_trial(
                    params=record.point, distributions=dict(study.space), value=study.scores(record)[-1]
                )
            )
    return found


def importances(study: Study, records: Sequence[Record]) -> dict[str, float]:
    """Return each range's share of the score's variance (fANOVA), largest first; empty for too few trials."""
    found = as_optuna(study, records)
    if len(found.trials) < MIN_TRIALS or len({trial.value for trial in found.trials}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(found, evaluator=evaluator)


def report_markdown(study: Study, records: Sequence[Record], command: str) -> str:
    """Return best trials, importances and the winner's command."""
    names = list(study.space)
    lines = [f"# {study.base.name}", "", f"| trial | {' | '.join(names)} | {study.score_name} |"]
    lines.append("|--:" * (len(names) + 2) + "|")
    for record in study.best(records):
        values = " | ".join(_shown(record.point[name]) for name in names)
        lines.append(f"| {record.number} | {values} | {study.scores(record)[-1]:.4f} |")
    counts = {state: sum(record.state == state for record in records) for state in ("stopped", "failed", "open")}
    lines += ["", ", ".join(f"{count} {state}" for state, count in counts.items())]
    found = importances(study, records)
    if found:
        lines += ["", "| range | importance |", "|---|--:|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in found.items()]
    return "\n".join([*lines, "", "Train the winner in full:", "", f"    {command}", ""])


def plots(study: Study, records: Sequence[Record]) -> dict[str, bytes]:
    """Return plots as PNG by name: parallel coordinates, and importances."""
    from optuna.visualization import matplotlib as drawing

    found = as_optuna(study, records)
    if not found.trials:
        return {}
    ranked = list(importances(study, records)) or list(study.space)
    shown = [name for name in ranked if len({trial.params[name] for trial in found.trials}) > 1][:MAX_AXES]
    made = {"parallel-coordinates.png": _png(lambda: drawing.plot_parallel_coordinate(found, params=shown or ranked))}
    if importances(study, records):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        made["importances.png"] = _png(lambda: drawing.plot_param_importances(found, evaluator=evaluator))
    return made


def scatter(
    points: Sequence[tuple[float, float]], front: Sequence[int], marked: int, *, x_label: str, y_label: str
) -> bytes:
    """Return a PNG of points, those of a Pareto front in colour, one marked as the base."""

    def draw() -> None:
        from matplotlib import pyplot

        pyplot.plot([x for x, _ in points], [y for _, y in points], "o", color="0.6", label="candidates")
        # Not joined: the front has three dimensions.
        pyplot.plot([points[index][0] for index in front], [points[index][1] for index in front], "o", label="front")
        pyplot.plot(*points[marked], "k*", markersize=14, label="base")
        pyplot.xlabel(x_label)
        pyplot.ylabel(y_label)
        pyplot.legend()

    return _png(draw)


def _png(draw: Callable[[], Any]) -> bytes:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings(), pyplot.rc_context({"figure.figsize": (10, 5)}):  # Optuna makes its own figures
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        draw()
        out = io.BytesIO()
        pyplot.savefig(out, format="png", dpi=110, bbox_inches="tight")
    pyplot.close("all")
    return out.getvalue()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
