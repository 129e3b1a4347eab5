"""Architecture rows as JSON, which a search writes and `--model-rows` reads, and as text for `model/tables.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from model.tables import Block


def rows_as_json(rows: Sequence[Block]) -> str:
    """Return rows as JSON: a list of objects with a block's fields."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def rows_from_json(text: str | bytes) -> tuple[Block, ...]:
    """Return the rows of a JSON list.

    Raises:
        ValueError: it is something else, or a row has a value that no row can have.
    """
    try:
        rows = tuple(Block(**row) for row in json.loads(text))
    except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("expected a JSON list of rows as jobs.search writes it") from error
    if not rows:
        raise ValueError("there are no rows in it")
    return rows


def rows_as_table(rows: Sequence[Block]) -> str:
    """Return rows as they stand in `model/tables.py`."""
    lines = []
    for row in rows:
        operator = f'"{row.operator}",'
        se = f", {row.se}" if row.se else ""
        numbers = f"{row.expansion}, {row.kernel}, {row.stride}, {row.channels:3}, {row.layers:2}{se}"
        lines.append(f"    Block({operator:15} {numbers}),")
    return "\n".join(["_SEARCHED = (", *lines, ")"])
