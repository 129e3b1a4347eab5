"""ELPV: photographs of solar cells under electroluminescence, from the `elpv-dataset` package."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image

from datasets.errors import DataError
from datasets.prepare.encode import jpeg_bytes
from datasets.prepare.source import Item, Plan, Source

LICENCE = "CC BY-NC-SA 4.0"
NOTICE = (
    f"ELPV: 2,624 photographs of solar cells (Buerhop-Lutz et al., 2018). Data licence: {LICENCE}, non-commercial use "
    "only; it is read from the installed package and never redistributed."
)
_PACKAGE = "elpv-dataset"
_LEVELS = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Elpv(Source):
    """Solar cells under electroluminescence: 2,624 grey photographs of 300x300 px, CC BY-NC-SA 4.0."""

    name: ClassVar[str] = "elpv"
    notice: ClassVar[str] = NOTICE

    task: Literal["binary", "levels"] = "binary"
    """`binary`: functional or defective (probability of a defect 0.5 or more); `levels`: the four probabilities."""

    def plan(self) -> Plan:
        """List the package's photographs; a quarter of every level and cell type, fixed by hash, is for validation.

        Raises:
            DataError: the package is not installed.
        """
        strata: defaultdict[tuple[float, str], list[str]] = defaultdict(list)
        for path, probability, cell in _rows():
            strata[probability, cell].append(path)
        splits: dict[str, list[Item]] = {"train": [], "val": []}
        for (probability, _), paths in sorted(strata.items()):
            paths.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
            held_out = len(paths) // 4
            splits["val"] += [Item(path, self._label(probability)) for path in paths[:held_out]]
            splits["train"] += [Item(path, self._label(probability)) for path in paths[held_out:]]
        return Plan(
            classes=("functional", "defective") if self.task == "binary" else ("0%", "33%", "67%", "100%"),
            splits={split: tuple(items) for split, items in splits.items()},
            origin={"licence": LICENCE, "package": f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"},
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one photograph as a grey JPEG."""
        with Image.open(_folder() / item.name) as image:
            return "jpg", jpeg_bytes(image)

    def _label(self, probability: float) -> int:
        return int(probability >= 0.5) if self.task == "binary" else round(probability * 3)


def _folder() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise DataError(f"elpv: the package {_PACKAGE} is not installed; run `make setup`, or install {_PACKAGE}")
    return Path(spec.origin).parent / "data"


def _rows() -> list[tuple[str, float, str]]:
    """Return (path, probability of a defect, cell type) of every photograph."""
    with (_folder() / "labels.csv").open(newline="") as stream:
        rows = csv.reader(stream, delimiter=" ", skipinitialspace=True)
        return [(row[0], float(row[1]), row[2].strip()) for row in rows if row]
