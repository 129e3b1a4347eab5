"""What would run if something unpickled it, in each of the formats that hold a pickle."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import torch


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def _plain(target: Path) -> bytes:
    return pickle.dumps(Malicious(target))


def _torch_zip(target: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state": Malicious(target), "weight": torch.zeros(1)}, stream)
    return stream.getvalue()


def _torch_legacy(target: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state": Malicious(target)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _numpy(target: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Malicious(target)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def _numpy_zip(target: Path) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, index=np.array([Malicious(target)], dtype=object))
    return stream.getvalue()


KINDS = (_plain, _torch_zip, _torch_legacy, _numpy, _numpy_zip)
