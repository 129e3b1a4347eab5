"""Tensors as safetensors files without copying them: a list of buffers to write one after the other.

The library's own writer wants each tensor as bytes of its own, which for a checkpoint is its whole size once more. Its
reader reads these files; the format is a length, a JSON header and the tensors' bytes.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from infra.storage.base import Data

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_OUTLINE = "outline"
_ALIGNMENT = 8


def pack(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> list[Data]:
    """Return the buffers of a safetensors file; they share the memory of tensors that are contiguous."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    buffers: list[Data] = []
    end = 0
    # The largest items first, as the library does: each tensor lies at a multiple of its item's size then.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        buffers.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *buffers]


def pack_nested(value: Any) -> list[Data]:
    """Return the buffers of a safetensors file of tensors in dicts, lists and tuples, beside plain JSON values."""
    tensors: dict[str, Tensor] = {}
    return pack(tensors, {_OUTLINE: json.dumps(_outline(value, "", tensors))})


def unpack_nested(data: bytes) -> Any:
    """Return what `pack_nested` was given. Raises many kinds of errors for data of another kind."""
    size = int.from_bytes(data[:8], "little")
    tensors = load(data)  # which checks the header against the data
    return _value(json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_OUTLINE]), tensors)


def _outline(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors in `value` into `tensors`; return the rest, with their names in their places."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):  # as pairs: JSON's own keys are texts
        return {"dict": [[key, _outline(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_outline(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    return value


def _value(outline: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(outline, dict):
        return outline
    ((kind, items),) = outline.items()
    if kind == "tensor":
        return tensors[items]
    if kind == "dict":
        return {key: _value(item, tensors) for key, item in items}
    values = [_value(item, tensors) for item in items]
    return tuple(values) if kind == "tuple" else values
