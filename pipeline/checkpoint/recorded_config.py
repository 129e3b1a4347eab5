"""Reads a config back from its recorded plain values (`pipeline.run.provenance.recorded_config`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.checkpoint.catalog import CheckpointError
from pipeline.task_config import TaskConfig

Config = TypeVar("Config")


def task_config_from(values: dict[str, Any], where: str) -> TaskConfig:
    """Make a task's config of its recorded values, of the kind that they are of.

    Raises:
        CheckpointError: as in `config_from`.
    """
    kind: type[TaskConfig] = _member(get_args(TaskConfig), values)
    return config_from(kind, values, where)


def config_from(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """Make a config dataclass of its recorded values. Fields that are missing, as older versions wrote, are defaults.

    Args:
        kind: the dataclass.
        values: JSON values by field name, nested as the dataclass is.
        where: what the values were read from, for the errors.

    Raises:
        CheckpointError: a field that this version doesn't know, or a value that it doesn't take.
    """
    try:
        made: Config = _made(kind, values)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{where} has a {kind.__name__} that this version doesn't know ({error}): use the version that wrote it"
        ) from error
    return made


def _made(kind: Any, value: Any) -> Any:
    """Return a value as its annotation `kind` says: dataclasses and tuples, which JSON has not, are made again."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _made(_member(arguments, value), value)
    if is_dataclass(kind):
        return _made_dataclass(kind, value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_made(one, item) for one, item in zip(kinds, value, strict=True))
    return value


def _made_dataclass(kind: Any, values: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(f"it has {', '.join(sorted(unknown))}")
    kinds = get_type_hints(kind)
    return kind(**{name: _made(kinds[name], value) for name, value in values.items()})


def _member(kinds: Sequence[Any], value: Any) -> Any:
    """Return the member of a union that a JSON value was written from.

    Of dataclasses it is the first that knows all of the value's fields: each has one of its own, and versions that
    wrote fewer knew only the first of them.
    """
    if isinstance(value, dict):
        members = [kind for kind in kinds if is_dataclass(kind)]
        unknown = [len(value.keys() - {field.name for field in fields(kind)}) for kind in members]
        return members[unknown.index(min(unknown))]
    if isinstance(value, list):
        return next(kind for kind in kinds if get_origin(kind) is tuple)
    return NoneType if value is None else next(kind for kind in kinds if kind is not NoneType)
