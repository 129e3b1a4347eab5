"""The definition and the options of a comparison. Light to import, since command lines need it."""

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
    """The question that it answers, in one or two sentences, for the top of the report."""
    variants: Mapping[str, TrainConfig]
    """Configs by the variants' names; the comparison sets name and seed of each run."""
    baseline: str
    """The variant that times and accuracies are compared with."""
    peers: frozenset[str] = frozenset()
    """Variants that are trained by another library's script."""
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
    """Recipe from which a predefined comparison makes its variants."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds with which each variant is trained."""
    variants: tuple[str, ...] = ()
    """Variants to train, by name, besides the baseline; none given: all."""
    target: float = 0.0
    """Score for the comparison of times; 0: the baseline's mean final score."""
    peer: Literal["none", "timm"] = "none"
    """Also train the recipe with another library's script, at its last size throughout and, if its sizes grow, with the
    library's progressive schedule."""
    peer_script: str = ""
    """timm's train.py, of a clone of its repository (the package is without it), at the same path on all nodes."""
    out: str = ""
    """Folder, or s3://BUCKET/PREFIX, for a copy of the report, which is also written to the storage."""
    dry_run: bool = False
    """Print the variants and their cost, and start nothing."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            given = " ".join(map(str, self.seeds)) or "empty"
            raise ValueError(f"--seeds is {given}: name at least one, and none twice, as in --seeds 0 1 2")
        if twice := [name for name in self.variants if self.variants.count(name) > 1]:
            raise ValueError(f"--variants names {twice[0]!r} twice: name each variant once")
