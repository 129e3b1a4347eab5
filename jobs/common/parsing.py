"""Flags -> a dataclass by tyro; what is wrong with them is one line."""

from __future__ import annotations

import difflib
import math
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

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
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pipeline.config import TrainConfig, numbers_of

T = TypeVar("T")

SECOND_NAMES = {
    "--profile": "--trainer.profile-steps",
    "--init-from": "--model.init-from",
    "--train": "--data.train",
    "--val": "--data.val",
}
"""Second names of flags, and the flags, for all jobs that take a recipe."""

_PLAIN = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not an integer",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"no type matching .* could be instantiated from \[(.*)\].*": r"it does not accept \1",
    r"Could not find valid parse for arguments: \[(.*)\]": r"it does not accept \1",
}
"""Python's message about a value -> one that a user can read"""
_EMPTY = "it is empty; name what is meant"
_REGISTRY = ConstructorRegistry()


class UsageError(ValueError):
    """The command line asks for something that doesn't exist."""


@_REGISTRY.primitive_rule
def _not_empty(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Refuse an empty path, which would be the working directory, and an empty word before the flags."""
    kind: Any = info.type
    if kind is not Path and not (kind is str and tyro.conf.Positional in info.markers):
        return None

    def made(given: list[str]) -> Path | str:
        if not given[0]:
            raise ValueError(_EMPTY)
        return kind(given[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if kind is Path else "STR",
        instance_from_str=made,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def parse_known(kind: type[T], argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Parse the flags that are the dataclass's; return it, and the other arguments."""
    found: Any = parse(kind, argv, prog=prog, return_unknown_args=True, add_help=False)
    return found[0], found[1]


def parse(kind: type[T], argv: Sequence[str], *, also: Sequence[type] = (), **options: Any) -> T:
    """Parse flags into a dataclass; what is wrong with them is one line.

    Args:
        kind: the dataclass.
        argv: the flags.
        also: dataclasses of flags that the command takes as well, and that were parsed before: a mistyped one may be
            of these.
        options: as `tyro.cli` takes them.

    Raises:
        UsageError: an unknown field, or a value that the field doesn't take.
    """

    def refuse(event: ParseErrorEvent) -> None:
        if isinstance(event, UnrecognizedArgs):
            raise UsageError(_unknown(event, kind, argv, also, options))
        raise UsageError(_one_line(event))

    with on_parse_error(refuse), _REGISTRY:
        made = tyro.cli(kind, args=list(argv), **options)
    known = made[0] if options.get("return_unknown_args") else made
    for name, number in numbers_of(known):
        if not math.isfinite(number):
            raise UsageError(f"{_given_as(name.replace('_', '-'), argv)} is {number}: it must be a finite number")
    return made


def _given_as(name: str, argv: Sequence[str]) -> str:
    """Return the flag that a field was given by: with all of the field's name, or a part of it."""
    given = (argument.partition("=")[0].replace("_", "-") for argument in argv if argument.startswith("--"))
    return next((flag for flag in given if f".{flag[2:]}." in f".{name}."), f"--{name}")


def check_local(**places: str) -> None:
    """Refuse a place in a cloud for what is written to this machine alone; the names are the flags'."""
    for flag, place in places.items():
        if "://" in place:
            path = unquote(urlsplit(place).path) if place.startswith("file://") else ""
            cure = f"name it by its path: {path}" if path else "name one, and copy it from there"
            raise ValueError(f"--{flag} is {place}: this is written to a local place; {cure}")


def nearest(given: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """Ask whether the known name was meant that is most like the given one; return `otherwise` if none is like it."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    return f"did you mean {close[0]}?" if close else otherwise


def _unknown(
    event: UnrecognizedArgs, kind: type, argv: Sequence[str], also: Sequence[type], options: dict[str, Any]
) -> str:
    """Return which flags the command doesn't have, and what may have been meant."""
    default = options.get("default")
    # A value behind a flag that isn't known is not known either, and is not what is wrong.
    flags = [token.partition("=")[0] for token in event.tokens if re.match(r"--?[A-Za-z]", token)]
    if not flags:
        return f"Unexpected arguments: {', '.join(event.tokens)} ({_program(event)}--help explains it)"
    if isinstance(default, TrainConfig) and (which := _no_stage(flags[0], default)):
        return which
    how = {name: options[name] for name in ("default", "config") if name in options}
    actions = [*actions_of(kind, argv, **how), *(action for one in also for action in actions_of(one))]
    known = [flag for action in actions for flag in action.option_strings]
    known += SECOND_NAMES if isinstance(default, TrainConfig) else ()
    asked = flags[0].replace("_", "-").replace("learning-rate", "lr")
    named_so = [flag for flag in known if flag.endswith(f".{asked.removeprefix('--')}")]
    lists = f"{_program(event)}{'--help-all' if isinstance(default, TrainConfig) else '--help'} lists them"
    hint = nearest(asked, known, f"did you mean {named_so[0]}?" if named_so else lists, cutoff=0.8)
    return f"Unrecognized options: {', '.join(flags)} ({hint})"


def _program(event: ParseErrorEvent) -> str:
    """Return how the program is called, and a blank; empty: it is a file, which nobody has called by its path."""
    return "" if "/" in event.prog else f"{event.prog} "


def _one_line(event: ParseErrorEvent) -> str:
    """Return what is wrong with a value, or what is missing: the flag, the value, and what is allowed."""
    match event:
        case InvalidChoice(argument=argument, value=value, choices=choices):
            allowed = ", ".join(choice for choice in choices if choice)  # an empty one is a flag that is not given
            return f"{argument.lowered.name_or_flags[0]}: {value!r} is not one of {allowed}"
        case BadValue(argument=argument):
            flag, count = argument.lowered.name_or_flags[0], argument.lowered.nargs
            if isinstance(count, int) and count > 1:
                return f"{flag}: it takes {count} values, {argument.lowered.metavar}"
            return f"{flag}: it needs a value"
        case InstantiationFailure(message=message, argument=None):
            # Which of several stages it was is known only to the error behind the event.
            where = getattr(sys.exception(), "arg", "")
            return f"{where}: {message}" if where and not message.startswith("--") else message
        case InstantiationFailure(message=message, argument=argument) if argument is not None:
            sentence = _EMPTY if _EMPTY in message else message.partition("\n")[0]
            for pattern, words in _PLAIN.items():
                sentence = re.sub(pattern, words, sentence)
            if sentence.startswith("it does not accept"):
                sentence += f"; it takes {argument.lowered.metavar}"
            return f"{_shown(argument.lowered.name_or_flags[0])}: {sentence}"
        case MissingArgs(missing_arguments=missing):
            named = ", ".join(_shown(one.arg.lowered.name_or_flags[0]) for one in missing)
            return f"missing: {named}; {_program(event)}--help explains it"
    return f"wrong arguments; {_program(event)}--help lists the flags"


def _shown(name: str) -> str:
    """Return a flag, or what stands before the flags as the help has it."""
    return name if name[0] == "-" else name.rpartition(".")[2].upper()


def _no_stage(flag: str, config: TrainConfig) -> str:
    """Say that a flag is of a stage that the recipe doesn't have; empty: it isn't."""
    count, match = len(config.stages), re.match(r"--stages\.(\d+)\.", flag)
    if match is None or int(match[1]) < count:
        return ""
    there = f"are {count} stages, 0 to {count - 1}" if count > 1 else "is one stage, 0"
    return f"{flag}: there {there}; --ramp.stages {int(match[1]) + 1} makes more"


def actions_of(kind: type, argv: Sequence[str] = (), **options: Any) -> Iterator[Any]:
    """Yield the arguments of a dataclass as actions of argparse, which have their flags, values and help.

    Args:
        kind: the dataclass.
        argv: a command line, whose subcommands' arguments are given too.
        options: as `tyro.cli` takes them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parsers: list[Any] = [tyro.extras.get_parser(kind, add_help=False, **options)]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parsers += [subcommand for name, subcommand in action.choices.items() if name in argv]
            else:
                yield action
