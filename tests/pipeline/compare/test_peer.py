"""The twin that timm's building blocks train, in this process."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.utils import random_seed

from datasets.shards.resolve import load_manifest
from jobs.recipes.fonts import fonts_small
from pipeline.compare.config import CompareError
from pipeline.compare.peer import Split, _rand_augment, _split, _Twin, train_with_timm
from pipeline.compare.peer_check import check_peer
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight, check_run
from pipeline.task_config import ClassificationConfig
from tests.support.shards import image_of, write_shards


def config() -> TrainConfig:
    base = fonts_small()
    stages = tuple(
        replace(base.stages[-1], image_size=32, epochs=4, mixup_alpha=0, randaugment_magnitude=0) for _ in range(2)
    )
    cluster = replace(base.cluster, num_workers=1)
    return replace(base, stages=stages, cluster=cluster, data=replace(base.data, crop_area=(0.5, 1.0)))


def split(folder: Path, samples: int) -> Split:
    return Split(tuple(sorted(str(path) for path in folder.glob("*.tar"))), samples)


@pytest.mark.parametrize("counts", [[60, 60], [120]])
def test_the_twin_learns_the_shards_in_as_many_steps(tmp_path: Path, counts: list[int]) -> None:
    write_shards(tmp_path / "train", counts)
    write_shards(tmp_path / "val", [30])
    train, val = split(tmp_path / "train", 120), split(tmp_path / "val", 30)
    found = train_with_timm(config(), train, val, num_classes=4, samples_per_epoch=120)
    rows = found["evaluations"]
    assert [row["cursor"] for row in rows] == [120 * epoch for epoch in range(1, 9)]
    assert found["samples"] == 960
    assert rows[-1]["pixels"] == 960 * 32**2
    assert all(before["train_s"] < after["train_s"] for before, after in pairwise(rows))
    assert round(rows[-1]["score"] * 30, 6).is_integer()  # every validation image once
    assert rows[-1]["score"] > 0.5  # a guess gives a quarter


def test_shards_of_several_folders_are_read_and_each_pass_is_an_epoch_of_timms(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_shards(tmp_path / name, [30])
    manifest = load_manifest("::".join(str(tmp_path / name) for name in "abc"))
    twin = _Twin(config(), _split(manifest), _split(manifest), 4)
    batches, reader = twin.batches(), twin.train_loader.dataset.reader
    epochs = [(next(batches), reader.epoch_count.value)[1] for _ in range(12)]  # 90 samples are four batches of 24
    assert epochs == [0] * 4 + [1] * 4 + [2] * 4
    assert len(list(twin.val_loader.dataset)) == 90


def test_a_weak_augmentation_leaves_images_nearly_as_they_are() -> None:
    image = Image.fromarray(image_of(0, 0))

    def changed(strength: int) -> float:
        random_seed(0)
        augment = rand_augment_transform(_rand_augment(strength, 1), {"translate_const": 20})
        others = [op for op in augment.ops if op.name not in ("Invert", "Equalize", "AutoContrast")]
        pairs = [np.abs(np.asarray(op(image), float) - np.asarray(image, float)).mean() for op in others]
        return float(np.mean(pairs))

    assert changed(1) < changed(9) / 2  # by timm's default the weakest posterizing gives a black image


def ready(tmp_path: Path, changed: TrainConfig) -> Preflight:
    if not (tmp_path / "train").exists():
        write_shards(tmp_path / "train", [60, 60])
        write_shards(tmp_path / "val", [30])
    data = replace(changed.data, train=str(tmp_path / "train"), val=str(tmp_path / "val"))
    return check_run(replace(changed, data=data))


def test_what_has_no_twin_is_refused_with_the_cure(tmp_path: Path) -> None:
    base = config()
    check_peer(ready(tmp_path, base), "val/accuracy")
    with pytest.raises(CompareError, match="trains classifiers"):
        check_peer(ready(tmp_path, base), "val/loss")
    last = base.stages[-1]
    for changed, reason in (
        (replace(base, cluster=replace(base.cluster, num_workers=2)), r"one process; give --cluster\.num-workers 1"),
        (replace(base, data=replace(base.data, train_weights=(0.5,))), "train-weights"),
        (replace(base, data=replace(base.data, loader_workers=3)), r"give --data\.loader-workers 2$"),
        (replace(base, optimizer=replace(base.optimizer, optimizer="sgd")), "only AdamW"),
        (replace(base, model=replace(base.model, init_from="/w.safetensors")), r"--model\.init-from"),
        (replace(base, adaptive=replace(base.adaptive, plateau=True)), "plateau"),
        (replace(base, trainer=replace(base.trainer, micro_batch_size=8)), "micro-batch-size"),
        (replace(base, task=ClassificationConfig(focal_gamma=2.0)), r"--task\.focal-gamma"),
        (replace(base, task=ClassificationConfig(class_weights="auto")), r"--task\.class-weights"),
        (replace(base, data=replace(base.data, sampling="balanced")), r"--data\.sampling"),
        (replace(base, stages=(replace(last, randaugment_magnitude=2.5),)), "whole magnitudes up to 9"),
        (replace(base, stages=(replace(last, randaugment_magnitude=10),)), "whole magnitudes up to 9"),
    ):
        with pytest.raises(CompareError, match=f"^peer timm: .*{reason}"):
            check_peer(ready(tmp_path, changed), "val/accuracy")
    local = ready(tmp_path, base)
    remote = replace(local.train, shards=tuple(replace(one, url="s3://b/x.tar") for one in local.train.shards))
    with pytest.raises(CompareError, match="local folders"):
        check_peer(replace(local, train=remote), "val/accuracy")
