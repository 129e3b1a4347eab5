"""Checkpoints, weights and leases that carry a pickle run nothing, whoever wrote them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.storage.base import Storage
from infra.storage.lease import KEY, Lease
from infra.storage.open import open_storage
from model.weights import WeightsError
from pipeline.checkpoint.catalog import CheckpointError, describe_checkpoints, newest_state
from pipeline.checkpoint.format import latest_valid, read_stored_weights, write_checkpoint
from pipeline.checkpoint.resume import read_initial_weights
from tests.support.pickles import KINDS
from tests.support.snapshots import snapshot

CHECKPOINT_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """Otherwise the other tests could not fail."""
    loads = (
        lambda data: pickle.loads(data),
        lambda data: torch.load(io.BytesIO(data), weights_only=False),
        lambda data: torch.load(io.BytesIO(data), weights_only=False),
        lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        lambda data: np.load(io.BytesIO(data), allow_pickle=True)["index"],
    )
    for kind, load in zip(KINDS, loads, strict=True):
        load(kind(tmp_path / "ran"))
        (tmp_path / "ran").unlink()


def forge(storage: Storage, key: str, name: str, data: bytes) -> None:
    """Write a file of a checkpoint, and have the manifest say that it is right."""
    storage.write(f"{key}/{name}", data)
    if name != "manifest.json":
        manifest = json.loads(storage.read(f"{key}/manifest.json"))
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        storage.write(f"{key}/manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint_with_a_pickle_is_skipped_by_driver_and_workers(tmp_path: Path, evil: bytes, name: str) -> None:
    storage = open_storage(tmp_path / "run")
    write_checkpoint(storage, snapshot(24))
    key = write_checkpoint(storage, snapshot(48))
    forge(storage, key, name, evil)
    found, skipped = latest_valid(storage)
    assert found is not None
    assert found.state.cursor == 24
    assert len(skipped) == 1
    assert name in skipped[0]
    state, _, lines = newest_state(storage)  # the driver reads no tensors
    assert state is not None
    assert (state.cursor, len(lines)) == ((24, 1) if name.endswith(".json") else (48, 0))
    describe_checkpoints(storage, verify=True)
    for ema in (False, True):
        if name.endswith(".json") or name == ("ema.safetensors" if ema else "model.safetensors"):
            with pytest.raises(CheckpointError, match=name):
                read_stored_weights(storage, key, ema=ema)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "bin", "ckpt"])
def test_foreign_weights_with_a_pickle_are_refused(tmp_path: Path, evil: bytes, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(evil)
    with pytest.raises(WeightsError, match=f"{path}: .*") as error:
        read_initial_weights(str(path))
    assert "\n" not in str(error.value)


def test_weights_of_a_checkpoint_with_a_pickle_are_refused(tmp_path: Path, evil: bytes) -> None:
    storage = open_storage(tmp_path / "run")
    forge(storage, write_checkpoint(storage, snapshot(24)), "ema.safetensors", evil)
    with pytest.raises(WeightsError, match=r"ema\.safetensors"):
        read_initial_weights(storage.uri)


def test_a_lease_that_is_a_pickle_expires(tmp_path: Path, evil: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.storage.lease.TERM_S", 0.2)
    storage = open_storage(tmp_path / "run")
    storage.write(KEY, evil)
    Lease(storage).take()
