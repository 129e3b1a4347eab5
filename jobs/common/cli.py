"""Recipe + command line -> `TrainConfig`."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from datasets.errors import MissingDataError
from datasets.files.urls import absolute
from infra.redact import redacted, redacted_command
from infra.storage.failures import is_transient, reworded
from infra.storage.open import open_storage
from jobs.common.facts import DataFlag, FactsFlag, Resolved, generic_config, resolved
from jobs.common.parsing import SECOND_NAMES, UsageError, nearest, parse, parse_known
from jobs.common.recipe_help import CONVERSIONS, recipe_help
from jobs.common.schedule_flags import ScheduleFlags, scheduled
from jobs.recipes.catalog import RECIPES
from jobs.recipes.generic import GENERIC
from model.rows import rows_from_json
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AUTO

T = TypeVar("T")

_HELP = frozenset({"-h", "--help", "--help-all"})
_BATCH_SIZE = re.compile(r"--stages\.\d+\.batch[-_]size")
"""The flags that take `auto`, which is the number `pipeline.schedule.stages.AUTO`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What every job that takes a recipe takes as well."""

    model_rows: str = ""
    """JSON file of architecture rows that replace the model's own, as written by `jobs.search`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Name:
    """What a run is called, apart from its other flags."""

    name: str = ""


def parse_recipe(argv: Sequence[str], *, prog: str, extra: type[T] | None = None) -> tuple[TrainConfig, T | None]:
    """Parse `RECIPE [--field value ...]`: the recipe's config with the fields of the command line in it.

    Args:
        argv: arguments after the program's name.
        prog: how the program is called, for its help.
        extra: a dataclass of further flags that are the job's own, not the run's.

    Raises:
        UsageError: no such recipe or field, or a value that the field doesn't take.
        ValueError: the file of --model-rows can't be read, or holds no rows.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(prog))
        sys.exit(0 if argv else 2)
    name = argv[0]
    _check_known(name)
    prog = f"{prog} {name}"
    own_flags: list[type] = [
        kind for kind in (extra, DataFlag, FactsFlag if name in GENERIC else None) if kind is not None
    ]
    if asked := _HELP & {*argv}:
        everything = "--help-all" in asked
        own_flags += [_Rows] if everything else []
        print(recipe_help(prog, RECIPES[name], own_flags, ScheduleFlags, everything=everything))
        sys.exit(0)
    argv = resolve(argv).argv
    _, rest = parse_known(FactsFlag, _without_auto(argv[1:]), prog=prog)
    rows, rest = parse_known(_Rows, rest, prog=prog)
    own: T | None = None
    if extra is not None:  # before the schedule's: a job may have --epochs of its own
        own, rest = parse_known(extra, rest, prog=prog)
    schedule, rest = parse_known(ScheduleFlags, rest, prog=prog)
    default = scheduled(default_config(argv), schedule)
    if rows.model_rows:
        default = replace(default, model=replace(default.model, rows=_read_rows(rows.model_rows), fused_rows=()))
    also = (*own_flags, _Rows, ScheduleFlags)
    return parse(TrainConfig, rest, also=also, default=default, prog=prog, config=CONVERSIONS), own


def resolve(argv: Sequence[str], *, suffix: str = "") -> Resolved:
    """Return a command line that can be read again anywhere, with the same result: see `jobs.common.facts`.

    A job that reads its command line more than once, or passes it on, resolves it first.

    Args:
        argv: `RECIPE [--field value ...]`. It stays as it is if it asks for help or for a recipe that isn't there.
        suffix: what the job adds to the name of a recipe's run.

    Raises:
        UsageError: the data are not what the recipe is for, or no prepared data.
        DataError: they can't be read.
    """
    if not argv or argv[0] not in RECIPES or _HELP & {*argv}:
        return Resolved([*argv])
    return resolved([argv[0], *map(_long, argv[1:])], suffix=suffix)


def default_config(argv: Sequence[str]) -> TrainConfig:
    """Return the recipe's config of a resolved command line, before its flags are applied."""
    return generic_config(argv) if argv[0] in GENERIC else RECIPES[argv[0]]()


def _check_known(recipe: str) -> None:
    if recipe not in RECIPES:
        hint = nearest(recipe, RECIPES, f"there are {', '.join(RECIPES)}")
        raise UsageError(f"no recipe is named {recipe!r}: {hint}")


def recipe_words(argv: Sequence[str], own: type) -> str:
    """Return the recipe and its flags as they stand on a command line, without the job's `own` ones and the name."""
    name, *rest = argv
    for flags in (own, _Name):
        _, rest = parse_known(flags, rest, prog=name)
    return redacted_command([name, *rest])


def rate_notes(argv: Sequence[str], config: TrainConfig) -> tuple[str, ...]:
    """Return a line where a resolved command line changes the last stage's batch size, but not the rate."""
    recipe = default_config(argv)
    was, now, rate = recipe.stages[-1].batch_size, config.stages[-1].batch_size, config.optimizer
    if was == now or rate.lr_per_batch or rate.lr != recipe.optimizer.lr:
        return ()
    return (
        f"batch_size is {now} in the last stage and {was} in the recipe, and optimizer.lr stays {rate.lr:g}: it is "
        f"absolute; --optimizer.lr-per-batch {was} scales it linearly with the batch",
    )


def _long(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{SECOND_NAMES.get(flag, flag)}{equals}{value}"


def _without_auto(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the number for `auto` where that is a stage's batch size."""

    def value_of(flag: str, argument: str) -> str:
        if argument == "auto" and _BATCH_SIZE.fullmatch(flag):
            return str(AUTO)
        return re.sub(f"^({_BATCH_SIZE.pattern}=)auto$", rf"\g<1>{AUTO}", argument)

    return [value_of(flag, argument) for flag, argument in zip(["", *argv], argv, strict=False)]


def _read_rows(uri: str) -> tuple[Block, ...]:
    folder, slash, name = (uri if "://" in uri else str(Path(uri).absolute())).rpartition("/")
    try:
        return rows_from_json(open_storage(folder or slash).read(name))
    except ValueError as error:
        raise reworded(error, f"model-rows is {uri}: {error}") from error


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} RECIPE [--field value ...]   ({prog} RECIPE --help lists the fields)", "", "recipes:"]
    for name, recipe in RECIPES.items():
        summary = (recipe.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:28} {summary}")
    return "\n".join(lines)


def operator() -> str:
    """Return who asks for something: user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def run_main(main: Callable[[Sequence[str]], int | None], *, resumes: str = "") -> None:
    """Run a job's `main(argv)`: a user's mistake, a file that can't be opened or written included, ends in one line on
    stderr and exit code 2, without a traceback; 75 where the same command may succeed later; Ctrl-C ends in exit code
    130. Where it was stopped by no fault of the command, it says how the job resumes, if `resumes` does.

    CRESCENDO_TRACEBACK=1 shows the traceback as well.
    """
    try:
        sys.exit(main(sys.argv[1:]) or 0)
    except (ValueError, OSError) as error:
        if os.environ.get("CRESCENDO_TRACEBACK") == "1":
            raise
        again = f"; {resumes}" if resumes and (isinstance(error, OSError) or is_transient(error)) else ""
        print(f"error: {redacted(_sentence(error))}{_makes(error)}{again}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL if is_transient(error) else 2)
    except KeyboardInterrupt:
        if resumes:
            print(f"interrupted; {resumes}", file=sys.stderr)
        sys.exit(130)


def _sentence(error: ValueError | OSError) -> str:
    """Return an error as a line for users: of a file that the system refused, its name first, and no number."""
    if not isinstance(error, OSError) or not error.strerror or not isinstance(error.filename, str):
        return str(error)
    cure = "; change its owner or mode, or name another place" if isinstance(error, PermissionError) else ""
    return f"{error.filename}: {error.strerror}{cure}"


def _makes(error: ValueError | OSError) -> str:
    """Say whose help has the command that makes the data that are missing; empty: they are of no recipe."""
    place = error.place if isinstance(error, MissingDataError) else ""
    for name, recipe in RECIPES.items() if place else ():
        if "jobs.prepare" in (recipe.__doc__ or ""):
            data = recipe().data
            if place in (absolute(data.train), absolute(data.val)):
                return f"; `python -m jobs.train {name} --help` has the command that makes them"
    return ""


ShortSides = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PX,PX,...",
        instance_from_str=lambda given: tuple(int(side) for side in given[0].split(",") if side),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda sides: [",".join(map(str, sides))],
    ),
]
