"""Flags -> a dataclass by tyro; what is wrong with them is one line."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

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

from jobs.common.schedule_flags import ScheduleFlags
from pipeline.config import TrainConfig, numbers_of

T = TypeVar("T")

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


def parse(kind: type[T], argv: Sequence[str], **options: Any) -> T:
    """Parse flags into a dataclass; what is wrong with them is one line.

    Raises:
        UsageError: an unknown field, or a value that the field doesn't take.
    """

    def refuse(event: ParseErrorEvent) -> None:
        raise UsageError(_one_line(event, kind, options.get("default")))

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
            raise ValueError(f"--{flag} is {place}: this is written to a local place; name one, and copy it from there")


def _one_line(event: ParseErrorEvent, kind: type, default: object) -> str:
    """Return what is wrong with a command line: the flag, the value, and what is allowed or may have been meant."""
    program = "" if "/" in event.prog else f"{event.prog} "  # else a file, which nobody has called by its path
    match event:
        case UnrecognizedArgs(tokens=tokens) if isinstance(default, TrainConfig) and (
            which := _no_stage(tokens, default)
        ):
            return which
        case UnrecognizedArgs(tokens=tokens):
            kinds = [default or kind, *([ScheduleFlags()] if kind is TrainConfig else [])]
            known = [f"--{name}" for one in kinds for name in flags_of(one)]
            asked = tokens[0].partition("=")[0].replace("_", "-").replace("learning-rate", "lr")
            named_so = [flag for flag in known if flag.endswith(f".{asked.removeprefix('--')}")]
            close = difflib.get_close_matches(asked, known, n=1, cutoff=0.8) or named_so
            everything = "--help-all" if isinstance(default, TrainConfig) else "--help"
            hint = f"did you mean {close[0]}?" if close else f"{program}{everything} lists them"
            return f"Unrecognized options: {', '.join(tokens)} ({hint})"
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
            return f"missing: {named}; {program}--help explains it"
    return f"wrong arguments; {program}--help lists the flags"


def _shown(name: str) -> str:
    """Return a flag, or what stands before the flags as the help has it."""
    return name if name[0] == "-" else name.rpartition(".")[2].upper()


def _no_stage(tokens: Sequence[str], config: TrainConfig) -> str:
    """Say that a flag is of a stage that the recipe doesn't have; empty: it isn't."""
    flag, count = tokens[0].partition("=")[0], len(config.stages)
    match = re.match(r"--stages\.(\d+)\.", flag)
    if match is None or int(match[1]) < count:
        return ""
    there = f"are {count} stages, 0 to {count - 1}" if count > 1 else "is one stage, 0"
    return f"{flag}: there {there}; --ramp.stages {int(match[1]) + 1} makes more"


def flags_of(of: object, prefix: str = "") -> Iterator[str]:
    """Yield the flags of a dataclass, or of an instance whose parts may be dataclasses too."""
    for field in fields(of):  # type: ignore[arg-type]
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(of, field.name, None)
        parts = enumerate(value) if isinstance(value, tuple) else [("", value)]
        nested = [(f"{name}.{key}." if key != "" else f"{name}.", part) for key, part in parts if is_dataclass(part)]
        yield from (flag for key, part in nested for flag in flags_of(part, key))
        if not nested:
            yield name
