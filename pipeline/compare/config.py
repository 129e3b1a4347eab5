"""What a comparison is, and its options. Light to import, as everything that a command line needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import TrainConfig


class CompareError(ValueError):
    """The comparison can't be made as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Variants that are two settings crossed, shown as a table."""

    rows: str
    """What the rows differ in."""
    columns: str
    """What the columns differ in."""
    cells: Mapping[tuple[str, str], str]
    """Variant by row's and column's label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Named variants of a run that are trained under equal conditions."""

    name: str
    question: str
    """What it is to answer, in one or two sentences, for the report's top."""
    variants: Mapping[str, TrainConfig]
    """Configs by the variants' names; name and seed of each run are the comparison's to say."""
    baseline: str
    """The variant that times and accuracies are compared with."""
    peers: frozenset[str] = frozenset()
    """Variants that another library's loop trains."""
    grid: Grid | None = None
    """How variants cross, where they do."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What a variant is, or why there is none, by its name."""
    notes: tuple[str, ...] = ()
    """Lines for the report that are about no variant."""

    @property
    def lines(self) -> list[str]:
        """What is said of the comparison beside its question."""
        return [*(f"{name}: {text}." for name, text in self.about.items()), *self.notes]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Options of a comparison. Every field of the recipe is a flag too."""

    recipe: str = "fonts_small"
    """Recipe that a ready-made comparison makes its variants of."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs of each variant."""
    epochs: float = 0.0
    """Epochs of all stages together, the recipe's lengths and warm-up in proportion; 0: the recipe's."""
    variants: tuple[str, ...] = ()
    """Which variants, by name, besides the baseline; none named: all."""
    target: float = 0.0
    """Score whose time is compared; 0: what the baseline ends with, in the mean over the seeds."""
    peer: Literal["none", "timm"] = "none"
    """Train a twin of the baseline's recipe, at its last size, by another library's loader and loop as well."""
    out: str = ""
    """Folder for the report besides the comparison's own in the storage."""
    dry_run: bool = False
    """Print the variants and what they cost; start nothing."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}: name at least one, and none twice")
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}: it must be above 0, or 0 for the recipe's")
