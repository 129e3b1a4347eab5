"""The search space of architectures: operator, layers, kernel and expansion of every row of a base table.

Channels and strides stay the base's, as in the papers' own searches over layers (arXiv 2104.00298, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from model.tables import Block

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OPERATORS = ("MBConv", "Fused-MBConv")
KERNELS = (3, 5)
EXPANSIONS = (1, 4, 6)


def distributions(base: Sequence[Block]) -> dict[str, BaseDistribution]:
    """Return the space around a base table: per row operator, kernel, expansion, and 1 to half as many layers more."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for number, row in enumerate(base, start=1):
        space[f"row{number}.operator"] = CategoricalDistribution(OPERATORS)
        space[f"row{number}.kernel"] = CategoricalDistribution(_with(KERNELS, row.kernel))
        space[f"row{number}.expansion"] = CategoricalDistribution(_with(EXPANSIONS, row.expansion))
        space[f"row{number}.layers"] = IntDistribution(1, most_layers(row))
    return space


def most_layers(row: Block) -> int:
    """Return the most layers that a row may have: half as many again as the base's, and at least one more."""
    return row.layers + max(1, math.ceil(row.layers / 2))


def choices(base: Sequence[Block]) -> list[tuple[str, int, int]]:
    """Return every (operator, kernel, expansion) that a row of the space may have."""
    kernels = sorted({*KERNELS, *(row.kernel for row in base)})
    expansions = sorted({*EXPANSIONS, *(row.expansion for row in base)})
    return list(product(OPERATORS, kernels, expansions))


def rows_of(base: Sequence[Block], point: Mapping[str, Any]) -> tuple[Block, ...]:
    """Return the rows that a point means; MBConv gates its channels if the base's does."""
    se = max((row.se for row in base), default=0.0)
    return tuple(
        replace(
            row,
            operator=point[f"row{number}.operator"],
            kernel=point[f"row{number}.kernel"],
            expansion=point[f"row{number}.expansion"],
            layers=point[f"row{number}.layers"],
            se=se if point[f"row{number}.operator"] == "MBConv" else 0.0,
        )
        for number, row in enumerate(base, start=1)
    )


def point_of(base: Sequence[Block]) -> dict[str, Any]:
    """Return the point that the base table is."""
    point: dict[str, Any] = {}
    for number, row in enumerate(base, start=1):
        for name in ("operator", "kernel", "expansion", "layers"):
            point[f"row{number}.{name}"] = getattr(row, name)
    return point


def _with(values: tuple[int, ...], own: int) -> tuple[int, ...]:
    return tuple(sorted({*values, own}))
