"""Recipe + command line -> `TrainConfig`: the only place that knows the CLI library."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import io
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from infra.storage.open import open_storage
from jobs.recipes.catalog import RECIPES
from model.rows import rows_from_json
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import AUTO

T = TypeVar("T")

_IN_WORDS = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no whole number",
    r"could not convert string to float: (.*)": r"\1 is no number",
    r"Could not find valid parse for arguments: \[(.*)\]": r"it doesn't take \1",
}
"""What Python says of a value -> what a user can read"""
SHORT = {"--profile": "--trainer.profile-steps", "--init-from": "--model.init-from"}
"""Flags that have a second name."""
_BATCH_SIZE = re.compile(r"--stages\.\d+\.batch[-_]size")
"""The flags that take `auto`, which is the number `pipeline.schedule.stages.AUTO`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What every job that takes a recipe takes as well."""

    model_rows: str = ""
    """JSON file of architecture rows in place of the model's own, as `jobs.search` writes it."""


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
    description = f"Recipe {name}. {recipe.__doc__ or ''}"
    if {"-h", "--help"} & {*rest}:
        for flags in filter(None, (extra, _Rows)):
            print(tyro.extras.get_parser(flags, prog=f"{prog} {name}", add_help=False).format_help())
    rows, rest = parse_known(_Rows, rest, prog=f"{prog} {name}")
    default = recipe()
    if rows.model_rows:
        default = replace(default, model=replace(default.model, rows=_read_rows(rows.model_rows), fused_rows=()))
    own: T | None = None
    if extra is not None:
        own, rest = parse_known(extra, rest, prog=f"{prog} {name}")
    config = parse(
        TrainConfig,
        rest,
        default=default,
        prog=f"{prog} {name}",
        description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return config, own


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
    """Parse flags into a dataclass; what is wrong with them is one line, not the CLI library's box of lines.

    Raises:
        UsageError: an unknown field, or a value that the field doesn't take.
    """
    said = io.StringIO()
    width = contextlib.nullcontext() if {"-h", "--help"} & {*argv} else _unfolded()
    try:
        with contextlib.redirect_stderr(said), width:
            return tyro.cli(kind, args=list(argv), **options)
    except SystemExit as end:
        if end.code == 0:
            raise
        raise UsageError(_one_line(said.getvalue(), kind.__name__)) from None


@contextlib.contextmanager
def _unfolded() -> Iterator[None]:
    """Have the CLI library write lines of any length: it folds them at the terminal's width, paths too."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(box: str, kind: str) -> str:
    """Return what a box of the CLI library says, and the flag that may have been meant.

    That is what it doesn't know, or else its first sentence, in other words where it quotes Python.
    """
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    body = [line.strip("-") and line for line in lines[1:]]  # the first one is the title; without UTF-8, rules are of -
    paragraphs = [" ".join(lines) for there, lines in groupby(body, bool) if there]
    unknown = [text for text in paragraphs if text.startswith("Unrecognized options:")]
    sentence = [*unknown, *paragraphs, "wrong arguments"][0]
    sentence = sentence.removeprefix("Error parsing ").removeprefix(f"{kind}: ")
    for pattern, words in _IN_WORDS.items():
        sentence = re.sub(pattern, words, sentence)
    if "Perhaps you meant:" in body:
        sentence += f" (did you mean {body[body.index('Perhaps you meant:') + 1].split()[0]}?)"
    return sentence


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
        print(f"error: {error}", file=sys.stderr)
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
