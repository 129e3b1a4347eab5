"""`--help` of a job that takes a recipe: the common flags, a stage's fields once; all flags by `--help-all`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import getdoc
from typing import Any

import tyro

from jobs.common.parsing import SECOND_NAMES, actions_of
from pipeline.config import TrainConfig
from pipeline.run.provenance import flat_values, recorded_config

CONVERSIONS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
"""How a `TrainConfig` becomes flags."""
COMMON = (
    *("--name", "--storage", "--resume-from", "--seed"),
    *("--data.train", "--data.val", "--data.crop-area", "--data.flip", "--data.eval-crop", "--data.loader-workers"),
    *("--model.name", "--model.init-from", "--model.stochastic-depth"),
    *("--task.label-smoothing", "--optimizer.optimizer", "--optimizer.lr", "--optimizer.lr-per-batch"),
    *("--optimizer.weight-decay", "--optimizer.warmup-epochs", "--optimizer.schedule", "--optimizer.ema-decay"),
    *("--trainer.micro-batch-size", "--trainer.precision", "--trainer.eval-every-epochs", "--checkpoint.best-metric"),
    *("--tracking.uri", "--cluster.address", "--cluster.num-workers", "--cluster.gpus-per-worker"),
    *("image-size", "epochs", "batch-size", "randaugment-magnitude", "mixup-alpha", "cutmix-alpha", "dropout"),
)
"""The flags of `--help`, and below them those of a stage; the others are in `--help-all`."""
ONE_STAGE = "one stage: N counts from 0; the recipe's values are in brackets"
_STAGE = "--stages.0."
_NONE = re.compile(r"\(default: None\)$")


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    values: str
    text: str

    def lines(self, width: int) -> Iterator[str]:
        second = next((f" (or {short})" for short, name in SECOND_NAMES.items() if name == self.name), "")
        yield f"  {self.name} {self.values}".rstrip() + second
        yield from textwrap.wrap(" ".join(self.text.split()), width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def recipe_help(
    prog: str, recipe: Callable[[], TrainConfig], own: Sequence[type], schedule: type, *, everything: bool
) -> str:
    """Return the help of a recipe.

    Args:
        prog: the command, with the recipe's name.
        recipe: whose values are the defaults.
        own: flags of the job.
        schedule: flags that make the stages.
        everything: all flags, not only the common ones.
    """
    config = recipe()
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    fields = list(_flags_of(TrainConfig, default=replace(config, stages=config.stages[:1]), config=CONVERSIONS))
    flags = {flag.name: flag for flag in fields if everything or flag.name.removeprefix(_STAGE) in COMMON}
    job = {flag.name: flag for kind in own for flag in _flags_of(kind)}
    stages = [flag for flag in _flags_of(schedule) if flag.name not in job]
    sections = {"this command": list(job.values()), "the run": [], "data": []}
    sections["all stages"] = [replace(one, text=_NONE.sub("(default: the recipe's)", one.text)) for one in stages]
    sections[ONE_STAGE] = [_of_stage(flag, config) for name, flag in flags.items() if name.startswith(_STAGE)]
    for name, flag in flags.items():
        if not name.startswith(_STAGE):
            sections.setdefault(name[2:].partition(".")[0] if "." in name else "the run", []).append(flag)
    lines = [f"usage: {prog} [--field value ...]", "", *(getdoc(recipe) or "").splitlines()]
    for title, found in sections.items():
        if found:
            lines += ["", title, *(line for flag in found for line in flag.lines(width))]
    more = "" if everything else f"\n\n{prog} --help-all lists all {len(fields)} fields."
    return "\n".join(lines) + more


def _flags_of(kind: type, **options: Any) -> Iterator[_Flag]:
    for action in actions_of(kind, **options):
        values = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        if action.option_strings:
            yield _Flag(action.option_strings[0], values, action.help or "")


def _of_stage(flag: _Flag, config: TrainConfig) -> _Flag:
    """Return the flag of any stage, with the values of all."""
    field = flag.name.removeprefix(_STAGE)
    stages = recorded_config(config)["stages"]
    values = [flat_values({"": stage[field.replace("-", "_")]}) for stage in stages]
    shown = ", ".join(" ".join(_short(one) for one in value.values()) for value in values)
    return replace(
        flag,
        name=f"--stages.N.{field}",
        text=re.sub(r"\(default: .*\)$", f"({shown})", flag.text, flags=re.DOTALL),
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
