"""`python -m jobs.models [NAME ...] [--json]`: parameters and multiply-adds of every model, next to the published ones.

`--check-logits` instead compares our logits with torchvision's and timm's, given the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.common.cli import run_main
from jobs.common.parsing import parse
from model.agreement import compare_all
from model.config import ModelConfig
from model.cost import count_multiply_adds, count_parameters
from model.factory import build_model, model_names
from model.published import PUBLISHED, PUBLISHED_FUSED_B4, Published
from model.tables import ARCHITECTURES

DEFAULT_SIZE = 224


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which models, and what of them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Models to list, including timm/NAME; none given: all."""
    json: bool = False
    """Print JSON instead of a table."""
    check_logits: bool = False
    """Compare logits with torchvision's and timm's models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """A line of the table: costs with 1,000 classes, and what was published."""

    name: str
    parameters: int
    published_parameters: str | None
    train_size: int
    train_multiply_adds: int
    """One image's at `train_size`, convolutions and products only."""
    published_size: int | None
    multiply_adds: int | None
    """One image's at `published_size`, convolutions and products only."""
    multiply_adds_elementwise: int | None
    """The same with batch norms, gates and sums, as TensorFlow's profiler counts."""
    published_multiply_adds_b: str | None
    published_top1: float | None


def measure(label: str, config: ModelConfig, published: Published | None, train_size: int) -> ModelRow:
    """Count one model."""
    with torch.device("meta"):
        model = build_model(config, num_classes=1000)
    size = published.image_size if published else None
    return ModelRow(
        name=label,
        parameters=count_parameters(model),
        published_parameters=published.parameters if published else None,
        train_size=train_size,
        train_multiply_adds=count_multiply_adds(model, train_size),
        published_size=size,
        multiply_adds=count_multiply_adds(model, size) if size else None,
        multiply_adds_elementwise=count_multiply_adds(model, size, elementwise=True) if size else None,
        published_multiply_adds_b=published.multiply_adds_b if published else None,
        published_top1=published.top1 if published else None,
    )


def measure_all(names: Sequence[str] = ()) -> list[ModelRow]:
    """The rows of `names`, or of all models and the paper's Fused-MBConv table."""
    rows = []
    for name in names or model_names():
        published = PUBLISHED.get(name)
        if name in ARCHITECTURES:
            train_size = ARCHITECTURES[name].train_size
        else:
            train_size = published.image_size if published else DEFAULT_SIZE
        rows.append(measure(name, ModelConfig(name=name), published, train_size))
    if not names:
        for fused, published in PUBLISHED_FUSED_B4.items():
            config = ModelConfig(name="efficientnet_b4", fused_rows=fused)
            label = f"efficientnet_b4 fused {fused[0]}-{fused[-1]}" if fused else "efficientnet_b4 none fused"
            rows.append(measure(label, config, published, published.image_size))
    return rows


_COLUMNS = (
    "model",
    "params M",
    "published",
    "train px",
    "mult-adds G",
    "at px",
    "mult-adds G",
    "all ops G",
    "published",
)


def as_table(rows: Sequence[ModelRow]) -> Table:
    """The rows for the terminal: parameters in millions, multiply-adds in billions."""
    caption = (
        "mult-adds: convolutions and matrix products; all ops: with norms, gates and sums, as TensorFlow counts.\n"
        "published: the papers', the released code's or torchvision's figures; = where ours is the same number"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: ModelRow) -> list[str]:
    published = row.published_parameters or ""
    return [
        row.name,
        f"{row.parameters / 1e6:.2f}",
        "=" if published == str(row.parameters) else published.removesuffix("M"),
        str(row.train_size),
        f"{row.train_multiply_adds / 1e9:.3f}",
        str(row.published_size or ""),
        _billions(row.multiply_adds),
        _billions(row.multiply_adds_elementwise),
        row.published_multiply_adds_b or "",
    ]


def _billions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.3f}"


def check_logits(*, as_json: bool) -> int:
    """Print how far our logits are from the libraries'; returns the exit code: 1 where it is more than rounding."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.caption = "largest difference of the logits, as a share of their spread; same random weights"
    for index, column in enumerate(("model", "library", "its name", "px", "float32", "float64", "")):
        table.add_column(column, justify="right" if 3 <= index <= 5 else "left", no_wrap=True)
    rows = list(compare_all())
    for row in rows:
        case, verdict = row.case, "rounding" if row.holds else "DIFFERENT"
        table.add_row(
            *(case.name, case.library, case.theirs, str(case.image_size)),
            *(f"{row.float32:.1e}", f"{row.float64:.1e}", verdict),
        )
    if as_json:
        print(json.dumps([asdict(row) | {"holds": row.holds} for row in rows], indent=1))
    else:
        Console(width=max(120, Console().width)).print(table)
    return 0 if all(row.holds for row in rows) else 1


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    options = parse(
        Options, argv, prog="python -m jobs.models", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if options.check_logits:
        return check_logits(as_json=options.json)
    rows = measure_all(options.names)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        table = as_table(rows)
        # A narrow terminal wraps lines; cut columns would lose figures.
        needed = Console(width=1000).measure(table).maximum
        Console(width=max(needed, Console().width)).print(table)
    return 0


if __name__ == "__main__":
    run_main(main)
