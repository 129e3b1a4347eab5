"""Parquet files as Hugging Face's library writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.prepared import numbered

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["dog", "cat", "ant"]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}
GROUP = 4


def write(path: Path, columns: dict[str, Any], features: dict[str, object] | None = None) -> None:
    """Write a file with row groups of four, and with Hugging Face's note of what the columns are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        note = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, path, row_group_size=GROUP)


def images(numbers: range) -> pa.Array:
    return pa.array([{"bytes": numbered(number), "path": f"{number}.png"} for number in numbers], IMAGE)


def write_classes(path: Path, numbers: range) -> None:
    """Write images of the class that is their number modulo 3."""
    labels = pa.array([number % 3 for number in numbers], pa.int64())
    write(path, {"image": images(numbers), "label": labels}, {"label": CLASS_LABEL})
