"""Recipe + command line -> `TrainConfig`: the only place that knows the CLI library."""

from __future__ import annotations

import difflib
import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)

from infra.redact import redacted, redacted_command
from infra.storage.open import open_storage
from jobs.common.recipe_help import CONVERSIONS, recipe_help
from jobs.common.schedule_flags import ScheduleFlags, scheduled
from jobs.recipes.catalog import RECIPES
from model.rows import rows_from_json
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AUTO

T = TypeVar("T")

_PLAIN = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not an integer",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"no type matching .* could be instantiated from \[(.*)\].*": r"it does not accept \1",
    r"Could not find valid parse for arguments: \[(.*)\]": r"it does not accept \1",
}
"""Python's message about a value -> one that a user can read"""
SHORT = {"--profile": "--trainer.profile-steps", "--init-from": "--model.init-from"}
"""Flags that have a second name."""
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


class UsageError(ValueError):
    """The command line asks for something that doesn't exist."""


def parse_recipe(argv: Sequence[str], *, prog: str, extra: type[T] | None = None) -> tuple[TrainConfig, T | None]:
    """Parse `RECIPE [--field value ...]`: the recipe's config with the fields of the command line in it.

    Args:
        argv: arguments after the program's name.
        prog: how the program is called, for its help.
        extra: a dataclass of further flags that are the job's own, not the run's.

    Raises:
        UsageError: no such recipe or field, or a value that the field doesn't take.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(prog))
        sys.exit(0 if argv else 2)
    name, *rest = _without_auto([_long(argument) for argument in argv])
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"no recipe is named {name!r}: {hint}")
    recipe = RECIPES[name]
    if asked := {"-h", "--help", "--help-all"} & {*rest}:
        everything = "--help-all" in asked
        own_flags = [flags for flags in (extra, _Rows if everything else None) if flags is not None]
        print(recipe_help(f"{prog} {name}", recipe, own_flags, ScheduleFlags, everything=everything))
        sys.exit(0)
    rows, rest = parse_known(_Rows, rest, prog=f"{prog} {name}")
    own: T | None = None
    if extra is not None:  # before the schedule's: a job may have --epochs of its own
        own, rest = parse_known(extra, rest, prog=f"{prog} {name}")
    schedule, rest = parse_known(ScheduleFlags, rest, prog=f"{prog} {name}")
    default = scheduled(recipe(), schedule)
    if rows.model_rows:
        default = replace(default, model=replace(default.model, rows=_read_rows(rows.model_rows), fused_rows=()))
    return parse(TrainConfig, rest, default=default, prog=f"{prog} {name}", config=CONVERSIONS), own


def recipe_words(argv: Sequence[str], own: type) -> str:
    """Return the recipe and its flags as they stand on a command line, without the job's `own` ones and the name."""
    name, *rest = argv
    for flags in (own, _Name):
        _, rest = parse_known(flags, rest, prog=name)
    return redacted_command([name, *rest])


def rate_notes(argv: Sequence[str], config: TrainConfig) -> tuple[str, ...]:
    """Return a line where a command line changes the last stage's batch size, but not the rate."""
    recipe = RECIPES[argv[0]]()
    was, now, rate = recipe.stages[-1].batch_size, config.stages[-1].batch_size, config.optimizer
    if was == now or rate.lr_per_batch or rate.lr != recipe.optimizer.lr:
        return ()
    return (
        f"batch_size is {now} in the last stage and {was} in the recipe, and optimizer.lr stays {rate.lr:g}: it is "
        f"absolute; --optimizer.lr-per-batch {was} scales it linearly with the batch",
    )


def _long(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{SHORT.get(flag, flag)}{equals}{value}"


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
        raise UsageError(f"model-rows is {uri}: {error}") from error


def parse_known(kind: type[T], argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Parse the flags that are the dataclass's; return it, and the other arguments."""
    found: Any = parse(kind, argv, prog=prog, return_unknown_args=True, add_help=False)
    return found[0], found[1]


def parse(kind: type[T], argv: Sequence[str], **options: Any) -> T:
    """Parse flags into a dataclass; what is wrong with them is one line.

    Raises:
        UsageError: an unknown field, or a value that the field doesn't take.
    """

    def refuse(event: ParseErrorEvent) -> None:
        raise UsageError(_one_line(event, kind, options.get("default")))

    with on_parse_error(refuse):
        return tyro.cli(kind, args=list(argv), **options)


def _one_line(event: ParseErrorEvent, kind: type, default: object) -> str:
    """Return what is wrong with a command line: the flag, the value, and what is allowed or may have been meant."""
    match event:
        case UnrecognizedArgs(tokens=tokens) if isinstance(default, TrainConfig) and (
            which := _no_stage(tokens, default)
        ):
            return which
        case UnrecognizedArgs(tokens=tokens):
            kinds = [default or kind, *([ScheduleFlags()] if kind is TrainConfig else [])]
            known = [f"--{name}" for one in kinds for name in _flags(one)]
            close = difflib.get_close_matches(tokens[0].replace("_", "-"), known, n=1, cutoff=0.8)
            return f"Unrecognized options: {', '.join(tokens)}" + (f" (did you mean {close[0]}?)" if close else "")
        case InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{argument.lowered.name_or_flags[0]}: {value!r} is not one of {', '.join(choices)}"
        case BadValue(argument=argument):
            return f"{argument.lowered.name_or_flags[0]}: it needs a value"
        case InstantiationFailure(message=message, argument=None):
            # Which of several stages it was is known only to the error behind the event.
            where = getattr(sys.exception(), "arg", "")
            return f"{where}: {message}" if where and not message.startswith("--") else message
        case InstantiationFailure(message=message, argument=argument) if argument is not None:
            sentence = message.partition("\n")[0]
            for pattern, words in _PLAIN.items():
                sentence = re.sub(pattern, words, sentence)
            return f"{argument.lowered.name_or_flags[0]}: {sentence}"
        case MissingArgs(missing_arguments=missing):
            return f"missing: {', '.join(one.arg.lowered.name_or_flags[0] for one in missing)}"
    return f"wrong arguments; {event.prog} --help lists the flags"


def _no_stage(tokens: Sequence[str], config: TrainConfig) -> str:
    """Say that a flag is of a stage that the recipe doesn't have; empty: it isn't."""
    flag, count = tokens[0].partition("=")[0], len(config.stages)
    match = re.match(r"--stages\.(\d+)\.", flag)
    if match is None or int(match[1]) < count:
        return ""
    there = f"are {count} stages, 0 to {count - 1}" if count > 1 else "is one stage, 0"
    return f"{flag}: there {there}; --ramp.stages {int(match[1]) + 1} makes more"


def _flags(of: object, prefix: str = "") -> Iterator[str]:
    """Yield the flags of a dataclass, or of an instance whose parts may be dataclasses too."""
    for field in fields(of):  # type: ignore[arg-type]
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(of, field.name, None)
        parts = enumerate(value) if isinstance(value, tuple) else [("", value)]
        nested = [(f"{name}.{key}." if key != "" else f"{name}.", part) for key, part in parts if is_dataclass(part)]
        yield from (flag for key, part in nested for flag in _flags(part, key))
        if not nested:
            yield name


def _usage(prog: str) -> str:
    lines = [f"usage: {prog} RECIPE [--field value ...]   ({prog} RECIPE --help lists the fields)", "", "recipes:"]
    for name, recipe in RECIPES.items():
        summary = (recipe.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:28} {summary}")
    return "\n".join(lines)


def operator() -> str:
    """Return who asks for something: user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a job's `main(argv)`: a user's mistake, a file that can't be opened or written included, ends in one line on
    stderr and exit code 2, without a traceback.

    CRESCENDO_TRACEBACK=1 shows the traceback as well.
    """
    try:
        sys.exit(main(sys.argv[1:]) or 0)
    except (ValueError, OSError) as error:
        if os.environ.get("CRESCENDO_TRACEBACK") == "1":
            raise
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


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
