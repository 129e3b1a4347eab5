"""Nothing that is read from storage runs, whoever wrote it; and no secret gets out. The test of `.pt2` files is beside
theirs (tests/jobs/test_export.py), that of tar members in tests/datasets/test_foreign.py.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import logging
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import remote
from datasets.cache import ShardCache, shard_key
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loader import build_eval_loader
from datasets.pyramid import write_copies
from datasets.shards import load_manifest
from infra.mlflow_run import make_client
from infra.spool import KEY_FILE, SPOOL_FILE
from infra.storage import Storage, StorageError, open_storage
from infra.storage_s3 import S3Storage
from infra.tracking import Tracker, TrackingConfig, prepare
from model.config import ModelConfig
from model.weights import WeightsError
from pipeline.checkpoint import newest_whole, read_stored_weights, write_checkpoint
from pipeline.config import ClassificationConfig, TrainConfig
from pipeline.lease import KEY, Lease
from pipeline.provenance import recorded_config
from pipeline.resume import planned_start, read_initial_weights
from pipeline.stages import TrainingStage
from pipeline.state import CheckpointError, describe_checkpoints, newest_state
from tests.datasets.images import write_shards
from tests.datasets.test_s3 import put
from tests.pipeline.test_checkpoint import snapshot

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


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
Evil = Callable[[], bytes]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__.strip("_"))
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A pickle that leaves the file `ran` if something unpickles it, in each of the formats that hold one."""
    data: bytes = request.param(tmp_path / "ran")
    return data


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path) -> object:
    yield
    assert not (tmp_path / "ran").exists()


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
    found, skipped = newest_whole(storage)
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


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_data_set_with_a_pickle_beside_its_shards_is_refused(
    tmp_path: Path, evil: bytes, s3_uri: str, place: str, name: str
) -> None:
    folder = write_shards(tmp_path / "shards", [12])
    (folder / name).write_bytes(evil)
    if place == "s3":
        for path in folder.iterdir():
            remote.upload(f"{s3_uri}/{path.name}", path)
    url = str(folder) if place == "local" else s3_uri
    with pytest.raises(DataError, match=name):
        _batches(DataConfig(train=url, val=url, cache_dir="none"))


@pytest.mark.parametrize("name", ["00000003.jpg", "00000003.cls", "00000003.pyd", "00000003.pickle", "00000003.pth"])
def test_a_member_with_a_pickle_is_not_opened(tmp_path: Path, evil: bytes, name: str) -> None:
    """The `webdataset` package would unpickle what is named .pyd, .pickle or .pth."""
    folder = write_shards(tmp_path / "shards", [8])
    with tarfile.open(folder / "part-000000.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    members[name] = evil
    with tarfile.open(folder / "part-000000.tar", "w") as tar:
        for member, content in sorted(members.items()):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    from datasets.indexing import IndexRules, index_shards

    if name.endswith(".cls"):  # its label is no number
        with pytest.raises(DataError, match="not a class number"):
            index_shards(str(folder), str(folder), IndexRules())
        return
    index_shards(str(folder), str(folder), IndexRules())
    damaged = name.endswith(".jpg")  # left out of an evaluation, and counted
    assert _batches(DataConfig(train=str(folder), val=str(folder), cache_dir="none")) == 8 - damaged
    if not damaged:
        write_copies(folder, [32], workers=1)


def test_a_shard_in_the_cache_that_is_a_pickle_is_not_opened(tmp_path: Path, evil: bytes, s3_uri: str) -> None:
    folder = write_shards(tmp_path / "shards", [8])
    put(folder, s3_uri, manifest=True)
    cache = ShardCache(tmp_path / "cache", 10**9)
    (shard,) = load_manifest(s3_uri).shards
    (tmp_path / "cache" / f"{shard_key(shard)}.tar").write_bytes(evil)
    assert cache.find(shard) is not None
    with pytest.raises((DataError, StorageError)) as error:
        _batches(DataConfig(train=s3_uri, val=s3_uri, cache_dir=str(tmp_path / "cache")))
    assert "\n" not in str(error.value)


def _batches(config: DataConfig) -> int:
    """Return how many samples an evaluation sees."""
    loader = build_eval_loader(config, image_size=32, batch_size=4, rank=0, world_size=1)
    return sum(len(batch.stream_index) for batch in loader)


@pytest.mark.parametrize("name", [KEY_FILE, SPOOL_FILE])
def test_tracking_files_with_a_pickle_stop_nothing(tmp_path: Path, evil: bytes, name: str, sqlite_uri: str) -> None:
    storage = open_storage(tmp_path / "run")
    storage.write(name, evil)
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False, send_interval_s=0.05), "x", storage=storage)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.close("FINISHED", timeout=30)


def test_a_lease_that_is_a_pickle_expires(tmp_path: Path, evil: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lease.TERM_S", 0.2)
    storage = open_storage(tmp_path / "run")
    storage.write(KEY, evil)
    Lease(storage).take()


@pytest.mark.parametrize("path", ["../../up.txt", "/etc/cron.d/evil", "a/../../up.txt"])
def test_a_spool_sends_no_file_of_this_machine_and_leaves_no_folder(
    tmp_path: Path, sqlite_uri: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    lines = [{"file": "stolen.txt", "local": str(secret)}, {"file": path, "data": "aHVudGVyMg=="}]
    storage = open_storage(tmp_path / "run")
    storage.write(SPOOL_FILE, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    config = TrackingConfig(uri=sqlite_uri, artifact_location=str(tmp_path / "artifacts"), system_metrics=False)
    prepare(config)
    tracker = Tracker(config, "x", storage=storage)
    tracker.log_text("fine.txt", "fine")
    assert tracker.close("FINISHED", timeout=30)
    assert tracker.run_id
    assert [item.path for item in make_client(sqlite_uri).list_artifacts(tracker.run_id)] == ["fine.txt"]
    assert not list(tmp_path.rglob("up.txt"))
    assert "damaged line" in caplog.text


SECRETS = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIexample", "hunter2", "session-token-77")


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and passwords in every place where a user may have them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS[3])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRETS[2]}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS[2])


@pytest.mark.usefixtures("secrets")
def test_no_secret_is_in_a_checkpoint_a_record_a_log_or_an_error(
    tmp_path: Path, sqlite_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.description import describe
    from pipeline.provenance import flat_values

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("infra.storage_s3.CHECK_PATIENCE_S", 0.1)
    config = TrainConfig(
        name="x",
        storage=str(tmp_path / "runs"),
        stages=(TrainingStage(image_size=32, epochs=1, batch_size=24),),
        data=DataConfig(train="s3://bucket/train", val="s3://bucket/val"),
        model=ModelConfig(name="efficientnet_v2_tiny"),
        task=ClassificationConfig(),
        tracking=TrackingConfig(uri=f"http://me:{SECRETS[2]}@127.0.0.1:9"),
    )
    storage = open_storage(f"{config.storage}/x")
    made = snapshot(24)
    write_checkpoint(storage, replace(made, facts=made.facts | {"config": recorded_config(config)}))
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False), "x", storage=storage)
    tracker.log_params(flat_values(recorded_config(config)))
    tracker.set_description(describe(config))
    tracker.set_tags({"checkpoint": config.tracking.uri})
    assert tracker.close("FINISHED", 30)
    assert tracker.run_id
    data = make_client(sqlite_uri).get_run(tracker.run_id).data
    errors = [_error(open_storage("s3://bucket/x").check_writable), _error(lambda: prepare(config.tracking))]
    errors += [
        _error(lambda: remote.read("s3://bucket/train/a.tar", length=9, patience_s=0.1)),
        _error(lambda: planned_start(config, _s3())),
    ]
    written = [path.read_bytes().decode("latin1") for path in storage_files(tmp_path) if path.suffix != ".db"]
    texts = [caplog.text, str(data.params), str(data.tags), *errors, *written, repr(storage), repr(_s3())]
    for secret in SECRETS:
        assert [text[:300] for text in texts if secret in text] == []
    assert all("\n" not in error for error in errors)


def _s3() -> Storage:
    return S3Storage("bucket", "x", patience_s=0.1)


def storage_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    return " <- ".join(chain)


SEALED = {"pipeline/segment.py", "pipeline/sweep/trial.py"}
"""Unpickle what their own driver sent through Ray, never what was in storage."""
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "eval", "exec", "yaml.load"}


def test_no_line_of_the_code_can_unpickle_what_is_stored() -> None:
    found = []
    for package in ("jobs", "pipeline", "model", "datasets", "infra"):
        for path in (ROOT / package).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            found += [f"{path.relative_to(ROOT)}: {said}" for call in calls if (said := _unsafe(call))]
    assert sorted(line for line in found if line.partition(":")[0] not in SEALED) == []
    assert {line.partition(":")[0] for line in found} == SEALED


def _unsafe(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    if name in FORBIDDEN or name.endswith((".extractall", ".extract")):
        return name
    if name == "torch.load" and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    return "allow_pickle" if options.get("allow_pickle") == "True" else ""
