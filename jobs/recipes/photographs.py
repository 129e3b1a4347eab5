"""Recipes on small photographs for studies on a CPU: a part of CIFAR-10 and of Tiny-ImageNet, a few minutes a run."""

from __future__ import annotations

from dataclasses import replace

from datasets.config import DataConfig
from infra.cluster.config import ClusterConfig
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage, ramp
from pipeline.training_config import OptimizerConfig, TrainerConfig


def cifar10_small() -> TrainConfig:
    """CIFAR-10 with 1,000 training images of each class: a run takes about two minutes of one core.

    From the published archive, unpacked to one image file each in cifar10/train/CLASS and cifar10/test/CLASS:

        for class in $(ls cifar10/train); do mkdir -p small/train/$class small/val/$class
        ls cifar10/train/$class | sort | head -1000 | xargs -I@ cp cifar10/train/$class/@ small/train/$class
        cp cifar10/test/$class/* small/val/$class; done
        python -m jobs.prepare image-folder small --out data/cifar10-small
    """
    rows = (
        Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=32, layers=2),
        Block("MBConv", expansion=4, kernel=3, stride=2, channels=80, layers=2, se=0.25),
    )
    return TrainConfig(
        name="cifar10-small",
        stages=_stages((16, 32), size_multiple=8),
        data=DataConfig(
            train="data/cifar10-small/train",
            val="data/cifar10-small/val",
            block_size=32,
            crop_area=(0.4, 1.0),
            eval_crop="whole",
            loader_workers=0,
        ),
        model=ModelConfig(name="efficientnet_v2_tiny", rows=rows, stochastic_depth=0.0, norm_momentum=0.1),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=4e-3, weight_decay=0.05, warmup_epochs=0.5, schedule="cosine", ema_decay=0.98
        ),
        trainer=TrainerConfig(eval_every_epochs=4, eval_batch_size=100),
        cluster=ClusterConfig(num_workers=1),
    )


def tiny_imagenet_small() -> TrainConfig:
    """Twenty classes of Tiny-ImageNet, every tenth by name: a run takes about two to three minutes of one core.

    From the published archive, tiny-imagenet-200.zip, whose validation images are in one folder, with a table:

        for class in $(ls tiny-imagenet-200/train | awk 'NR % 10 == 1'); do mkdir -p small/train small/val/$class
        cp -r tiny-imagenet-200/train/$class/images small/train/$class
        awk -v c=$class '$2 == c { print $1 }' tiny-imagenet-200/val/val_annotations.txt |
        xargs -I@ cp tiny-imagenet-200/val/images/@ small/val/$class; done
        python -m jobs.prepare image-folder small --out data/tiny-imagenet-20
    """
    base = cifar10_small()
    rows = (
        Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
        Block("Fused-MBConv", expansion=3, kernel=3, stride=2, channels=32, layers=1),
        Block("Fused-MBConv", expansion=3, kernel=3, stride=2, channels=48, layers=1),
        Block("MBConv", expansion=4, kernel=3, stride=2, channels=80, layers=2, se=0.25),
    )
    return replace(
        base,
        name="tiny-imagenet-small",
        stages=_stages((32, 64), size_multiple=16),
        data=replace(base.data, train="data/tiny-imagenet-20/train", val="data/tiny-imagenet-20/val"),
        model=replace(base.model, rows=rows),
    )


def cifar10_progressive() -> TrainConfig:
    """The data and the network of `cifar10_small` with stages that were tuned for speed.

    Half of the epochs are at 16 px, in batches of 96. The rate's factors keep it at a third of its peak or more
    until 32 px: a plain cosine is at 0.17 of it there, and little is learned at the larger sizes. There is no
    RandAugment, which so short a training gains nothing by.

    What `python -m jobs.compare progressive-vs-fixed --recipe cifar10_progressive --variants fixed progressive
    --seeds 0 1 2 --cluster.num-workers 1` compares was measured without Ray (docs/results.md): 55.2 %, fixed 57.3 %;
    with --epochs 12, which costs less than fixed's 8, 59.4 %.
    """
    return _tuned(cifar10_small(), (16, 24, 32))


def tiny_imagenet_progressive() -> TrainConfig:
    """The data and the network of `tiny_imagenet_small` with the stages of `cifar10_progressive`, at 32 to 64 px."""
    return _tuned(tiny_imagenet_small(), (32, 48, 64))


def _tuned(base: TrainConfig, sizes: tuple[int, int, int]) -> TrainConfig:
    first, second, last = sizes
    return replace(
        base,
        name=base.name.replace("small", "progressive"),
        stages=(
            TrainingStage(image_size=first, epochs=4, batch_size=96, lr_factor=1.4),
            TrainingStage(image_size=second, epochs=2, batch_size=48, lr_factor=2.0, dropout=0.05),
            TrainingStage(image_size=last, epochs=2, batch_size=48, lr_factor=5.0, dropout=0.1),
        ),
    )


def _stages(image_size: tuple[int, int], *, size_multiple: int) -> tuple[TrainingStage, ...]:
    return ramp(
        epochs=8,
        batch_size=48,
        image_size=image_size,
        randaugment_magnitude=(0, 4),
        mixup_alpha=(0, 0.1),
        dropout=(0.0, 0.1),
        num_stages=3,
        size_multiple=size_multiple,
    )
