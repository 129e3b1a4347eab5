"""What a run starts from: the cases of pipeline/checkpoint/resume.py, each on real checkpoints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.checks import check_data, data_fingerprint
from datasets.config import DataConfig
from datasets.loading.sample_order import sample_order
from infra.storage.base import Storage
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from model.config import ModelConfig
from model.factory import build_model
from model.pretrained import PretrainedError
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.resume import find_start, planned_start
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.run.preflight import absolute, check_run, preflight, with_start
from pipeline.run.provenance import recorded_config
from pipeline.run.reachability import check_reachable
from pipeline.training_config import CheckpointConfig
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.shards import index_again
from tests.support.trainers import make_trainer


def storage_of(config: TrainConfig) -> Storage:
    return open_storage(f"{config.storage}/{config.name}")


def saved(
    config: TrainConfig, storage: Storage, cursor: int, *, bias: float, record: Callable[[Any], Any] = recorded_config
) -> Snapshot:
    """Write a checkpoint with a model of the config whose classifier's bias is `bias`, its average's -bias."""
    config = absolute(config)
    manifest, val = check_data(config.data, batch_sizes=[], worker_counts=[])
    model = build_model(config.model, num_classes=len(manifest.classes)).state_dict()
    model["classifier.1.bias"].fill_(bias)
    ema = {f"module.{name}": value.clone() for name, value in model.items()} | {"n_averaged": torch.tensor(3)}
    ema["module.classifier.1.bias"].fill_(-bias)
    data = data_fingerprint(sample_order(config.data, manifest, seed=config.seed), manifest)
    snapshot = Snapshot(
        state=TrainState(cursor=cursor, step=cursor // 24),
        model=model,
        ema=ema,
        optimizer={"state": {}, "param_groups": []},
        metadata=RunMetadata(config=record(config), data=data, val=val.fingerprint),
    )
    write_checkpoint(storage, snapshot)
    return snapshot


def damage(storage: Storage, cursor: int, name: str) -> None:
    key = f"checkpoints/{cursor:015d}/{name}"
    data = bytearray(storage.read(key))
    data[-3] ^= 1
    storage.write(key, bytes(data))


def test_case_1_the_latest_valid_one_and_a_line_for_each_that_is_not(make_config: MakeConfig) -> None:
    config = make_config(resume_from="/nowhere")
    storage = storage_of(config)
    for cursor in (24, 48, 72, 96):
        saved(config, storage, cursor, bias=cursor)
    damage(storage, 72, "model.safetensors")
    storage.delete(f"checkpoints/{96:015d}/optimizer.safetensors")
    found = find_start(config, storage)
    assert found.state is not None
    assert found.state.cursor == 48
    assert ["is missing" in found.notes[0], "is corrupt" in found.notes[1], len(found.notes)] == [True, True, 2]
    planned = planned_start(config, storage)  # knows names and sizes only
    assert planned.state is not None
    assert planned.state.cursor == 72
    assert ["is missing" in line for line in planned.notes] == [True]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_case_2_everything_of_another_run(make_config: MakeConfig, s3_uri: str, place: str) -> None:
    base = make_config() if place == "local" else make_config(storage=s3_uri)
    for cursor in (24, 48):
        saved(base, storage_of(base), cursor, bias=cursor)
    run = storage_of(base).uri
    for source, cursor in ((run, 48), (f"{run}/checkpoints/{24:015d}", 24), (f"{run}/checkpoints/", 48)):
        config = replace(base, name="other", resume_from=source)
        for start in (planned_start(config, storage_of(config)), find_start(config, storage_of(config))):
            assert start.state is not None
            assert start.state.cursor == cursor
            assert start.source == source
    own = replace(base, name="own", resume_from=run)
    saved(own, storage_of(own), 72, bias=0)
    assert find_start(own, storage_of(own)).state.cursor == 72  # type: ignore[union-attr]


def test_case_2_refuses_what_is_not_there_or_damaged(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(resume_from=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"resume_from is .*nothing"):
        planned_start(config, storage_of(config))
    saved(config, open_storage(tmp_path / "there"), 24, bias=1)
    damage(open_storage(tmp_path / "there"), 24, "model.safetensors")
    config = make_config(resume_from=str(tmp_path / "there" / "checkpoints" / f"{24:015d}"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
        find_start(config, storage_of(config))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_case_3_weights_only(make_config: MakeConfig, s3_uri: str, tmp_path: Path, place: str) -> None:
    base = make_config() if place == "local" else make_config(storage=s3_uri)
    snapshot = saved(base, storage_of(base), 24, bias=2.0)
    file = tmp_path / "weights.pt"
    torch.save(snapshot.model, file)
    storage_of(base).sub("files").upload("weights.pt", file)
    run = storage_of(base).uri
    for source, bias in ((run, -2.0), (f"{run}/checkpoints/{24:015d}", -2.0), (f"{run}/files/weights.pt", 2.0)):
        config = replace(base, name="other", model=replace(base.model, init_from=source))
        assert planned_start(config, storage_of(config)).source == source
        start = find_start(config, storage_of(config))
        assert start.state is None
        assert start.weights is not None
        assert start.weights["classifier.1.bias"].tolist() == [bias] * 4
    for missing in (f"{run}/files/none.pt", f"{run}-none"):
        config = replace(base, name="other", model=replace(base.model, init_from=missing))
        with pytest.raises(CheckpointError, match="init_from is"):
            planned_start(config, storage_of(config))


def test_case_3_says_why_a_runs_checkpoints_can_not_be_used(make_config: MakeConfig) -> None:
    base = make_config()
    saved(base, storage_of(base), 24, bias=2.0)
    saved(base, storage_of(base), 48, bias=3.0)
    config = replace(base, name="other", model=replace(base.model, init_from=storage_of(base).uri))
    storage_of(base).write(f"checkpoints/{48:015d}/ema.safetensors", b"x")
    (note,) = planned_start(config, storage_of(config)).notes
    assert note.startswith("skipped a checkpoint: ")
    assert "ema.safetensors is corrupt: 1 bytes" in note
    storage_of(base).write(f"checkpoints/{24:015d}/ema.safetensors", b"x")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints of .* can be read \(.*is corrupt"):
        planned_start(config, storage_of(config))


def test_case_3_imagenet_weights_by_name(make_config: MakeConfig) -> None:
    model = ModelConfig(name="efficientnet_lite0", init_from="lite0")
    config = replace(make_config(), model=model)
    assert planned_start(config, storage_of(config)).source == "lite0"
    start = find_start(config, storage_of(config))
    assert start.weights is not None
    assert start.weights["_fc.weight"].shape == (1000, 1280)
    assert absolute(config).model == model
    check_reachable(replace(absolute(config), tracking=TrackingConfig(uri="http://mlflow:5000")))
    other = replace(config, model=replace(model, name="resnet50"))
    with pytest.raises(PretrainedError, match=r"set --model\.name efficientnet_lite0"):
        planned_start(other, storage_of(other))


def test_case_4_fresh(make_config: MakeConfig) -> None:
    config = make_config()
    assert find_start(config, storage_of(config)) == planned_start(config, storage_of(config))


def older_record(config: Any) -> Any:
    """Return a config as a version wrote it that had no field which has its default."""
    if is_dataclass(config):
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        defaults = {field.name: field.default for field in fields(config)}
        return {name: older_record(value) for name, value in values.items() if value is not defaults[name]}
    return [older_record(item) for item in config] if isinstance(config, tuple) else config


def test_a_run_of_a_version_with_fewer_fields_resumes_with_their_defaults(make_config: MakeConfig) -> None:
    config = make_config()
    saved(config, storage_of(config), 24, bias=0, record=older_record)
    assert with_start(check_run(config)).notes == ()
    data = replace(config.data, flip_order="alternating", randaugment_policy="google")
    said = "data.flip_order: 'random' -> 'alternating', data.randaugment_policy: 'torchvision' -> 'google'"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        with_start(check_run(replace(config, data=data)))


def test_a_changed_config_goes_on_or_is_refused_by_its_fields(make_config: MakeConfig, sqlite_uri: str) -> None:
    tracking = TrackingConfig(uri=sqlite_uri, system_metrics=False)
    config = make_config(tracking=tracking)
    saved(config, storage_of(config), 24, bias=0)
    assert preflight(config).notes == ()
    harmless = replace(
        config,
        checkpoint=CheckpointConfig(keep=7),
        cluster=replace(config.cluster, num_workers=3),
        stages=tuple(replace(stage, num_workers=1) for stage in config.stages),
    )
    (note,) = preflight(harmless).notes
    assert "checkpoint.keep: 3 -> 7" in note
    for change, said in (
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"data": replace(config.data, num_lanes=6)}, "data.num_lanes: 12 -> 6"),
        ({"model": replace(config.model, stochastic_depth=0.0)}, "model.stochastic_depth: 0.1 -> 0.0"),
        ({"stages": config.stages[:1]}, "stages.1"),
    ):
        with pytest.raises(CheckpointError, match="--name") as error:
            preflight(replace(config, **change))
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    other = replace(config, name="other", seed=5, resume_from=str(storage_of(config).uri))
    with pytest.raises(CheckpointError, match="start from its weights alone with"):
        preflight(other)


def test_what_another_submission_did_before_this_one_got_the_lease_counts(
    make_config: MakeConfig, sqlite_uri: str
) -> None:
    config = make_config(tracking=TrackingConfig(uri=sqlite_uri, system_metrics=False))
    ready = preflight(config)
    assert ready.resume_from is None
    saved(config, storage_of(config), 24, bias=0)
    again = with_start(ready)
    assert again.resume_from is not None
    assert again.resume_from.cursor == 24
    saved(replace(config, seed=5), storage_of(config), 48, bias=0)
    with pytest.raises(CheckpointError, match="seed: 5 -> 0"):
        with_start(ready)


@pytest.mark.parametrize(("part", "verb"), [("train", "trained"), ("val", "evaluated")])
def test_a_set_that_was_indexed_again_since_is_refused_at_the_start(
    make_config: MakeConfig, tmp_path: Path, part: str, verb: str
) -> None:
    base = make_config()
    shutil.copytree(getattr(base.data, part), tmp_path / part)
    config = replace(base, data=replace(base.data, **{part: str(tmp_path / part)}))
    saved(config, storage_of(config), 24, bias=0)
    assert with_start(check_run(config)).resume_from is not None
    index_again(tmp_path / part)
    with pytest.raises(CheckpointError, match=f"was {verb} on different data than .*/{part}.* index it as before"):
        with_start(check_run(config))
    index_again(tmp_path / part)  # as before
    assert with_start(check_run(config)).resume_from is not None


def test_secrets_in_urls_are_not_written_down(make_config: MakeConfig) -> None:
    config = make_config(tracking=TrackingConfig(uri="http://me:hush@127.0.0.1:9/"), data=DataConfig())
    assert "hush" not in str(recorded_config(config))


def test_case_2_a_finished_runs_last_stage_goes_on_with_more_epochs(
    make_config: MakeConfig, whole_run: Recorder
) -> None:
    base, snapshot = make_config(), whole_run.snapshots[-1]
    ended = snapshot.state
    metadata = saved(base, storage_of(base), 24, bias=0).metadata
    write_checkpoint(storage_of(base), replace(snapshot, metadata=metadata))
    longer = (base.stages[0], replace(base.stages[1], epochs=base.stages[1].epochs + 1))
    config = replace(base, name="other", resume_from=storage_of(base).uri, stages=longer)
    ready = with_start(check_run(config))
    assert not ready.finished
    epochs = base.stages[1].epochs
    assert ready.notes[-1].endswith(f", with other values: stages.1.epochs: {epochs!r} -> {epochs + 1!r}")
    assert ready.resume_from is not None
    assert ready.resume_from.stage_starts == ended.stage_starts[:-1]
    start = find_start(config, storage_of(config))
    goes_on = make_trainer(config, Recorder())
    goes_on.restore(start.snapshot)
    goes_on.run()
    assert goes_on.state.cursor == ready.total_samples > ended.cursor
    assert goes_on.state.stage_starts == [*ended.stage_starts[:-1], ready.total_samples]
    assert goes_on.state.stage_results[1]["samples"] == ready.total_samples - ended.stage_starts[1]


def test_case_2_a_run_that_leaves_nothing_to_train_is_refused_with_the_cure(
    make_config: MakeConfig, whole_run: Recorder
) -> None:
    base = make_config()
    metadata = saved(base, storage_of(base), 24, bias=0).metadata
    write_checkpoint(storage_of(base), replace(whole_run.snapshots[-1], metadata=metadata))
    shorter = (base.stages[0], replace(base.stages[1], epochs=1))
    for stages in (base.stages, shorter, base.stages[:1]):
        config = replace(base, name="other", resume_from=storage_of(base).uri, stages=stages)
        with pytest.raises(CheckpointError, match=r"resume_from is .* more epochs \(--stages"):
            with_start(check_run(config))
