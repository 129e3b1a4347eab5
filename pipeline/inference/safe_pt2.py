"""`.pt2` files made safe to load: they may name code to run, and torch.export.load has no switch against it.

That loader unpickles objects that an archive holds, loads compiled libraries out of it, evaluates sizes and guards that
are text, and calls any function below `torch` that a node names. So an archive is read here, by a list of what a model
needs, and rewritten: the loader sees nothing else of the file.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_MODEL, _FACTS, _INPUTS = "models/model.json", "extra/facts.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_LABELS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\.)\w+\.\w+|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|getitem|eq|ne|ge|gt|le|lt)"
)
"""What a node may call: `from_file` would open any file."""
_EXPRESSION = re.compile(
    r"(?:Symbol\('\w+'(?:, (?:positive|integer|nonnegative)=True)*\)|Integer|Rational|Add|Mul|Mod|FloorDiv|Max|Min"
    r"|[-+*/(), \d])+"
)
"""A size, as text that SymPy evaluates."""
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", None)


class UnsafeArchiveError(ValueError):
    """A `.pt2` file holds what a model doesn't need; says what."""


def safe_archive(path: Path) -> io.BytesIO:
    """Return a copy of a `.pt2` file with nothing in it but tensors, sizes and PyTorch's own operators.

    Raises:
        UnsafeArchiveError: it holds something else.
        Exception: of the many parts of an archive, each fails in a way of its own.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    known = {_MODEL, _FACTS, _INPUTS, *_CONFIGS, *_LABELS}
    if other := sorted(name for name in entries if name not in known and not _TENSOR.fullmatch(name)):
        raise UnsafeArchiveError(f"it holds {other[0]}, which no model needs")
    for name in _CONFIGS:
        _check_payloads(json.loads(entries[name])["config"])
    torch.load(io.BytesIO(entries[_INPUTS]), weights_only=True)  # the loader, if this fails, tries without
    entries[_MODEL] = _checked_program(entries[_MODEL])
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    copy.seek(0)
    return copy


def _check_payloads(config: dict[str, dict[str, Any]]) -> None:
    for entry in config.values():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise UnsafeArchiveError("it holds pickled objects, which are never loaded")


def _checked_program(data: bytes) -> bytes:
    """Return the program without its remarks and guards, if it calls and evaluates only what a model needs."""
    program = json.loads(data)
    program["guards_code"] = []  # Python text, which the loader would run
    for key, value in _pairs(program):
        if key == "target" and not _OPERATOR.fullmatch(str(value)):
            raise UnsafeArchiveError(f"it calls {value!r}, which is not one of PyTorch's own operators")
        if key == "expr_str" and not _EXPRESSION.fullmatch(str(value)):
            raise UnsafeArchiveError(f"its size {value!r} is not a formula")
        if key in ("in_spec", "out_spec") and any(
            name == "type" and kind not in _CONTAINERS for name, kind in _pairs(json.loads(value))
        ):
            raise UnsafeArchiveError(f"it takes or gives {value!r}, which are not tensors")
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(program).encode()


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value in nested JSON values."""
    if isinstance(value, dict):
        yield from value.items()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(item)
