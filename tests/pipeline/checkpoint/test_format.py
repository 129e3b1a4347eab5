from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from infra.storage.base import Storage, StorageAwayError
from infra.storage.open import open_storage
from pipeline.checkpoint import pruning
from pipeline.checkpoint.catalog import CheckpointError, list_checkpoints, newest_state
from pipeline.checkpoint.format import latest_valid, read_checkpoint, write_checkpoint
from pipeline.checkpoint.pruning import prune
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.tensors import pack, pack_nested, unpack_nested
from tests.support.snapshots import snapshot


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def test_what_is_written_is_read(storage: Storage) -> None:
    written = snapshot(48)
    read = read_checkpoint(storage, write_checkpoint(storage, written))
    assert read.state == written.state
    assert read.metadata == written.metadata
    for name in written.model:
        assert torch.equal(read.model[name], written.model[name])
    assert torch.equal(read.optimizer["state"][0]["square"], written.optimizer["state"][0]["square"])
    assert read.optimizer["param_groups"] == written.optimizer["param_groups"]


def test_each_kind_of_tensor_is_read_by_the_library_and_lies_where_its_type_wants_it() -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): (torch.arange(5) % 2).to(kind) for kind in kinds}
    tensors |= {"one": torch.tensor(1.5), "none": torch.empty(0, 3), "turned": torch.arange(6).reshape(2, 3).T}
    nested = {"state": {0: {"a": tensors}, 7: {}}, "groups": [{"betas": (0.9, math.inf), "fused": None, "on": True}]}
    data = b"".join(pack_nested(nested))
    loaded = safetensors.torch.load(data)
    assert len(loaded) == len(tensors)
    read = unpack_nested(data)
    assert read["groups"] == nested["groups"]
    assert list(read["state"]) == [0, 7]
    for name, tensor in tensors.items():
        found = read["state"][0]["a"][name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    for whole in (tensors["turned"].T, tensors["one"]):  # contiguous: not copied
        assert np.shares_memory(np.frombuffer(pack({"x": whole})[1], np.uint8), whole.numpy())


def test_a_checkpoint_without_manifest_is_not_there(storage: Storage) -> None:
    write_checkpoint(storage, snapshot(24))

    def dies() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(storage, snapshot(48), dies)
    found, skipped = latest_valid(storage)
    assert found is not None
    assert found.state.cursor == 24
    assert skipped == []
    assert newest_state(storage) == (found.state, found.metadata, [])


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_line_that_says_so(storage: Storage, damage: str) -> None:
    write_checkpoint(storage, snapshot(24))
    key = write_checkpoint(storage, snapshot(48))
    name = f"{key}/manifest.json" if damage == "manifest" else f"{key}/model.safetensors"
    data = bytearray(storage.read(name))
    if damage == "missing":
        storage.delete(name)
    else:
        data[-1] ^= 1
        storage.write(name, bytes(data[: len(data) // 2] if damage in ("cut", "manifest") else data))
    found, skipped = latest_valid(storage)
    assert found is not None
    assert found.state.cursor == 24
    assert len(skipped) == 1
    assert name in skipped[0]


def test_prune_keeps_the_newest_and_sweeps_torn_ones_before_them(storage: Storage) -> None:
    for cursor in (24, 48, 72, 96):
        key = write_checkpoint(storage, snapshot(cursor))
        if cursor == 48:
            storage.delete(f"{key}/manifest.json")
    prune(storage, keep=2, written=key)
    assert [int(key.rpartition("/")[2]) for key in list_checkpoints(storage)] == [72, 96]
    assert not [name for name in storage.list("checkpoints/") if "/000000000000048/" in name]


def test_prune_keeps_what_was_just_written_when_later_ones_are_damaged(storage: Storage) -> None:
    for cursor in (24, 72, 96):
        key = write_checkpoint(storage, snapshot(cursor))
        if cursor > 24:
            storage.write(f"{key}/model.safetensors", b"damaged")
    assert latest_valid(storage)[0].state.cursor == 24  # type: ignore[union-attr]
    written = write_checkpoint(storage, snapshot(48))  # the run that continued from there
    prune(storage, keep=1, written=written)
    assert list_checkpoints(storage) == [written]
    found, skipped = latest_valid(storage)
    assert found is not None
    assert (found.state.cursor, skipped) == (48, [])


@pytest.mark.parametrize("kind", ["newer version", "no memory", "storage away", "manifest"])
def test_prune_keeps_later_ones_that_could_only_not_be_read(
    storage: Storage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a checksum proves that a checkpoint is lost."""
    later = write_checkpoint(storage, snapshot(72))
    if kind == "newer version":
        state = json.loads(storage.read(f"{later}/state.json"))
        state["state"]["a_field_of_a_newer_version"] = 1
        data = json.dumps(state).encode()
        manifest = json.loads(storage.read(f"{later}/manifest.json"))
        manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        storage.write(f"{later}/state.json", data)
        storage.write(f"{later}/manifest.json", json.dumps(manifest).encode())
    elif kind == "manifest":
        storage.write(f"{later}/manifest.json", b"{")
    written = write_checkpoint(storage, snapshot(48))
    error = {"no memory": MemoryError(), "storage away": StorageAwayError("away")}.get(kind)
    if error is not None:
        monkeypatch.setattr(pruning, "read_verified", lambda *_: (_ for _ in ()).throw(error))
        with contextlib.suppress(MemoryError, StorageAwayError):  # the async writer tries again
            prune(storage, keep=1, written=written)
    else:
        prune(storage, keep=1, written=written)
    assert list_checkpoints(storage) == [written, later]


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "state.json"])
def test_nothing_that_is_read_is_unpickled(storage: Storage, tmp_path: Path, name: str) -> None:
    target = tmp_path / "ran"
    evil = pickle.dumps(Malicious(target))
    key = write_checkpoint(storage, snapshot(24))
    storage.write(f"{key}/{name}", evil)
    _forge_manifest(storage, key, name, evil)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(storage, key)
    assert not target.exists()


def _forge_manifest(storage: Storage, key: str, name: str, data: bytes) -> None:
    import hashlib
    import json

    manifest = json.loads(storage.read(f"{key}/manifest.json"))
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.write(f"{key}/manifest.json", json.dumps(manifest).encode())


def test_a_second_one_at_a_cursor_leaves_the_first_whole_until_it_is_whole_itself(storage: Storage) -> None:
    first = snapshot(24)
    key = write_checkpoint(storage, first)
    decided = replace(first, state=TrainState(cursor=24, step=1, decisions=[{"decision": "pause"}]))

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(storage, decided, killed)
    assert read_checkpoint(storage, key).state == first.state
    assert write_checkpoint(storage, decided) == key
    assert read_checkpoint(storage, key).state == decided.state
    assert newest_state(storage)[0] == decided.state


def test_checkpoints_of_which_none_can_be_read_are_no_fresh_start(storage: Storage) -> None:
    for cursor in (24, 48):
        storage.write(f"{write_checkpoint(storage, snapshot(cursor))}/model.safetensors", b"damaged")
    for find in (latest_valid, newest_state):
        with pytest.raises(CheckpointError, match="none of the 2 checkpoints of"):
            find(storage)


def test_no_checkpoint_is_a_fresh_start(storage: Storage) -> None:
    assert latest_valid(storage) == (None, [])


def test_a_run_without_moving_average_has_no_such_file(storage: Storage) -> None:
    key = write_checkpoint(storage, replace(snapshot(24), ema=None))
    assert not storage.exists(f"{key}/ema.safetensors")
    assert read_checkpoint(storage, key).ema is None
