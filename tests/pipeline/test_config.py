from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest

from jobs.recipes.catalog import RECIPES
from pipeline.config import TrainConfig


def values_of(hint: Any, bad: float) -> Iterator[Any]:
    """Yield the values with a bad number in them that a field of this type could be given."""
    if hint is float:
        yield bad
    elif getattr(hint, "__origin__", None) is tuple:
        yield from ((value,) * (1 if ... in get_args(hint) else 2) for value in values_of(get_args(hint)[0], bad))
    else:
        yield from (value for member in get_args(hint) for value in values_of(member, bad))


def with_part(config: TrainConfig, part: str, field: str, value: Any) -> TrainConfig:
    """Return the config with another value in a field of one of its parts."""
    if part == "stages":
        return replace(config, stages=(replace(config.stages[0], **{field: value}), *config.stages[1:]))
    return replace(config, **{part: replace(getattr(config, part), **{field: value})})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("recipe", ["classify", "segment", "multilabel", "regress"])
def test_no_number_of_a_run_may_be_nan_or_infinite(recipe: str, bad: float) -> None:
    config = RECIPES[recipe]()
    parts = {field.name: getattr(config, field.name) for field in fields(config)} | {"stages": config.stages[0]}
    tried = []
    for part, section in parts.items():
        hints = get_type_hints(type(section)) if is_dataclass(section) else {}
        for field, value in ((field, value) for field, hint in hints.items() for value in values_of(hint, bad)):
            with pytest.raises(ValueError, match=field):
                with_part(config, part, field, value)
            tried.append(f"{part}.{field}")
    assert {"adaptive.min_epochs", "stages.crop_area", "data.train_weights", "optimizer.clip_norm"} <= {*tried}


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("adaptive", "min_epochs", math.nan, "adaptive.min_epochs is nan: it must be a finite number"),
        ("data", "train_weights", (1.0, math.inf), "data.train_weights.1 is inf: it must be a finite number"),
        ("cluster", "ask_ahead_s", -1.0, r"cluster.ask_ahead_s is -1.0: it must be 0 \(off\) or more"),
    ],
)
def test_a_bad_number_is_named_with_its_part(part: str, field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        with_part(RECIPES["classify"](), part, field, value)
