"""Trainings by timm's train.py: its flags, what is laid out for it, its results, and what is refused."""

from __future__ import annotations

import os
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
from jobs.recipes.stage_variants import fixed_stages
from pipeline.compare.config import CompareError
from pipeline.compare.peer import lay_out, results, train_by_script
from pipeline.compare.peer_check import check_peer
from pipeline.compare.peer_flags import differences, rand_augment, script_flags
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight, check_run
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import ClassificationConfig
from tests.support import peer_script
from tests.support.shards import image_of, write_shards

STAND_IN = peer_script.__file__
SCRIPT = os.environ.get("CRESCENDO_TIMM_SCRIPT", "")


def config(*sizes: int, epochs: float = 2) -> TrainConfig:
    base = fonts_small()
    last = replace(base.stages[-1], mixup_alpha=0, randaugment_magnitude=0, epochs=epochs)
    stages = tuple(replace(last, image_size=size) for size in sizes or (32, 32))
    cluster = replace(base.cluster, num_workers=1)
    return replace(base, stages=stages, cluster=cluster, data=replace(base.data, crop_area=(0.5, 1.0)))


def test_flags_say_what_the_config_says() -> None:
    base = config(32, 48)
    stage = TrainingStage(
        image_size=48, epochs=2.5, batch_size=20, randaugment_magnitude=4, mixup_alpha=0.2, dropout=0.3
    )
    base = replace(base, stages=(base.stages[0], replace(stage, epochs=1.5), stage))
    flags = script_flags(base, 7, bf16=False, device="cpu")
    how = base.optimizer
    expected = {
        "epochs": 6, "batch_size": 20, "num_classes": 7, "input_size": [3, 48, 48], "aa": "rand-m4-n2-p1-inc1",
        "mixup": 0.2, "drop": 0.3, "lr": how.lr, "warmup_epochs": how.warmup_epochs, "sched": "cosine",
        "train_img_sizes": [32, 48], "train_batch_sizes": [base.stages[0].batch_size, 20],
        "train_size_schedule": "progressive", "scale": [0.5, 1.0], "amp": False, "model_ema_decay": how.ema_decay,
    }  # fmt: skip
    assert {name: flags[name] for name in expected} == expected
    fixed = script_flags(replace(base, stages=fixed_stages(base.stages)), 7, bf16=True, device="cuda")
    assert not {name for name in fixed if name.startswith(("train_size", "train_img"))}
    assert fixed["amp"]
    at_64 = replace(base, stages=fixed_stages(base.stages), trainer=replace(base.trainer, eval_scale=64 / 48))
    evaluated = script_flags(at_64, 7, bf16=False, device="cpu")
    assert (evaluated["input_size"], evaluated["train_img_sizes"]) == ([3, 64, 64], [48])


def test_differences_are_those_of_the_config() -> None:
    fixed, growing = "; ".join(differences(config())), "; ".join(differences(fonts_small()))
    assert "drawn around one that grows" not in fixed
    assert "drawn around one that grows" in growing
    assert "one strength of RandAugment" in growing
    assert "one strength of RandAugment" not in "; ".join(differences(config(32, 48)))
    assert "learning-rate factor" not in growing


def test_a_weak_augmentation_leaves_images_nearly_as_they_are() -> None:
    image = Image.fromarray(image_of(0, 0))

    def changed(strength: int) -> float:
        random_seed(0)
        augment = rand_augment_transform(rand_augment(strength, 1), {"translate_const": 20})
        others = [op for op in augment.ops if op.name not in ("Invert", "Equalize", "AutoContrast")]
        pairs = [np.abs(np.asarray(op(image), float) - np.asarray(image, float)).mean() for op in others]
        return float(np.mean(pairs))

    assert changed(1) < changed(9) / 2  # by timm's default the weakest posterizing gives a black image


def test_each_image_of_all_shards_is_a_file_in_the_folder_of_its_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, [30], classes=3)
    lay_out(load_manifest(f"{tmp_path / 'a'}::{tmp_path / 'b'}"), tmp_path / "out")
    found = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "out").iterdir()}
    assert found == {"000000": 20, "000001": 20, "000002": 20}


def test_results_join_scores_with_times_of_training_alone() -> None:
    def at(wall: float, cpu: float) -> dict[str, float]:
        return {"wall_s": wall, "cpu_s": cpu}

    clock = {
        "epochs": [
            {"start": at(10, 5), "end": at(14, 7), "samples": 100, "pixels": 1000},
            {"start": at(15, 8), "end": at(18, 9), "samples": 200, "pixels": 4000},
        ],
        "finish": at(20, 11),
        "peak_bytes": 3,
    }
    found = results([{"epoch": "1", "eval_top1": "25.0"}], clock)
    assert found["evaluations"] == [
        {"cursor": 200, "score": 0.25, "train_s": 7, "cpu_s": 3, "eval_s": 3, "pixels": 4000.0}
    ]
    assert (found["samples"], found["peak_bytes"]) == (200, 3)


def test_a_script_that_fails_is_one_line(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_shards(tmp_path / name, [8])
    (tmp_path / "train.py").write_text("raise SystemExit('no such flag')")
    manifests = load_manifest(str(tmp_path / "train")), load_manifest(str(tmp_path / "val"))
    with pytest.raises(RuntimeError, match=r"train\.py: no such flag$"):
        train_by_script(config(), *manifests, str(tmp_path / "train.py"))


@pytest.mark.parametrize("sizes", [(32, 32), (24, 32)])
@pytest.mark.parametrize(
    "script",
    [
        STAND_IN,
        pytest.param(
            SCRIPT,
            marks=[
                pytest.mark.soak,
                pytest.mark.skipif(not SCRIPT, reason="CRESCENDO_TIMM_SCRIPT names no train.py of a clone of timm"),
            ],
            id="timm's",
        ),
    ],
)
def test_the_script_trains_our_model_on_the_shards(tmp_path: Path, script: str, sizes: tuple[int, int]) -> None:
    write_shards(tmp_path / "train", [60, 60])
    write_shards(tmp_path / "val", [30])
    manifests = load_manifest(str(tmp_path / "train")), load_manifest(str(tmp_path / "val"))
    found = train_by_script(config(*sizes, epochs=4), *manifests, script)
    rows = found["evaluations"]
    assert [row["cursor"] for row in rows] == [120 * epoch for epoch in range(1, 9)]
    assert found["samples"] == 960
    assert all(before["train_s"] < after["train_s"] for before, after in pairwise(rows))
    assert all(before["cpu_s"] < after["cpu_s"] for before, after in pairwise(rows))
    right = rows[-1]["score"] * 30
    assert right == pytest.approx(round(right), abs=1e-3)  # every validation image once
    if script != STAND_IN:
        assert rows[-1]["score"] > 0.5  # a guess gives a quarter
        low = 960 * sizes[0] ** 2
        assert rows[-1]["pixels"] == low if sizes[0] == 32 else low < rows[-1]["pixels"] < 960 * 32**2


def ready(tmp_path: Path, changed: TrainConfig) -> Preflight:
    if not (tmp_path / "train").exists():
        write_shards(tmp_path / "train", [60, 60])
        write_shards(tmp_path / "val", [30])
    data = replace(changed.data, train=str(tmp_path / "train"), val=str(tmp_path / "val"))
    return check_run(replace(changed, data=data))


def test_what_the_script_cannot_train_is_refused_with_the_cure(tmp_path: Path) -> None:
    base = config()
    check_peer(ready(tmp_path, base), "val/accuracy", STAND_IN)
    with pytest.raises(CompareError, match="trains classifiers"):
        check_peer(ready(tmp_path, base), "val/loss", STAND_IN)
    last = base.stages[-1]
    for changed, reason in (
        (replace(base, cluster=replace(base.cluster, num_workers=2)), r"one process; give --cluster\.num-workers 1"),
        (replace(base, data=replace(base.data, train_weights=(0.5,))), "train-weights"),
        (replace(base, optimizer=replace(base.optimizer, optimizer="sgd")), "only AdamW"),
        (replace(base, optimizer=replace(base.optimizer, schedule="exponential")), r"--optimizer\.schedule cosine or"),
        (replace(base, model=replace(base.model, init_from="/w.safetensors")), r"--model\.init-from"),
        (replace(base, adaptive=replace(base.adaptive, plateau=True)), "plateau"),
        (replace(base, trainer=replace(base.trainer, micro_batch_size=8)), "micro-batch-size"),
        (replace(base, task=ClassificationConfig(focal_gamma=2.0)), r"--task\.focal-gamma"),
        (replace(base, task=ClassificationConfig(class_weights="auto")), r"--task\.class-weights"),
        (replace(base, data=replace(base.data, sampling="balanced")), r"--data\.sampling"),
        (replace(base, stages=(replace(last, randaugment_magnitude=2.5),)), "whole magnitudes up to 9"),
        (replace(base, stages=(replace(last, randaugment_magnitude=10),)), "whole magnitudes up to 9"),
        (replace(base, stages=(replace(last, epochs=2.4),)), r"have 2\.4 together; give --epochs 2$"),
        (replace(base, stages=(replace(last, cutmix_alpha=1.0),)), "leave CutMix out"),
    ):
        with pytest.raises(CompareError, match=f"^peer timm: .*{reason}"):
            check_peer(ready(tmp_path, changed), "val/accuracy", STAND_IN)


@pytest.mark.parametrize(("script", "reason"), [("", "is not in the package"), ("/no/train.py", "/no/train.py is no")])
def test_a_script_that_is_not_there_is_refused_with_where_to_get_it(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(
        CompareError, match=rf"{reason}.*; `git clone https://\S+` and give --peer-script \S+/train.py$"
    ):
        check_peer(ready(tmp_path, config()), "val/accuracy", script)
