"""CIFAR-10 and Tiny-ImageNet in full: on two CPU cores, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

from infra.cluster.config import ClusterConfig
from jobs.recipes.photographs import cifar10_small
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage, ramp


def cifar10() -> TrainConfig:
    """CIFAR-10 in full, for two CPU cores: 50,000 training images of 32 px, 10 classes, a network of 0.58 M parameters.

    From the published archive, unpacked to one image file each in cifar10/train/CLASS and cifar10/test/CLASS:

        cp -r cifar10/test cifar10/val
        python -m jobs.prepare image-folder cifar10 --out data/cifar10
        python -m jobs.train cifar10

    To hold it against: ResNet-20, of 0.27 M parameters, reaches 91.25 % in 64,000 steps of 128 images (He et al.,
    arXiv 1512.03385, table 6). The recipe reaches 83.6 % in forty epochs, of which half are at 16 px: 49 minutes of
    one core (docs/results.md).
    """
    base = cifar10_small()
    rows = (
        Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=24, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=48, layers=2),
        Block("MBConv", expansion=4, kernel=3, stride=2, channels=128, layers=3, se=0.25),
    )
    return replace(
        base,
        name="cifar10",
        stages=_cpu_stages((16, 24, 32), epochs=40),
        data=replace(base.data, train="data/cifar10/train", val="data/cifar10/val"),
        model=replace(base.model, rows=rows),
        optimizer=replace(base.optimizer, warmup_epochs=1),
        cluster=ClusterConfig(num_workers=2),
    )


def cifar10_gpu() -> TrainConfig:
    """CIFAR-10 in full, for one GPU: EfficientNetV2-B0 on images enlarged to 64 to 128 px. Data as for `cifar10`.

    `python -m jobs.train cifar10_gpu`. What the recipe reaches was not measured.
    """
    return _on_gpu(cifar10(), epochs=60)


def tiny_imagenet() -> TrainConfig:
    """Tiny-ImageNet in full, for two CPU cores: 100,000 training images of 64 px, 200 classes, a network of 0.70 M
    parameters.

    From the published archive, tiny-imagenet-200.zip, whose validation images are in one folder, with a table:

        for class in $(ls tiny-imagenet-200/train); do mkdir -p tiny/train tiny/val/$class
        cp -r tiny-imagenet-200/train/$class/images tiny/train/$class
        awk -v c=$class '$2 == c { print $1 }' tiny-imagenet-200/val/val_annotations.txt |
        xargs -I@ cp tiny-imagenet-200/val/images/@ tiny/val/$class; done
        python -m jobs.prepare image-folder tiny --out data/tiny-imagenet
        python -m jobs.train tiny_imagenet

    To hold it against, from scratch: a ResNet-20 55.4 % on the validation images (H. Yu, a report for Stanford's
    CS231n), and a DenseNet of 8.9 M parameters 62.95 % in 95 epochs that began at 16 and 32 px (P. Gulati,
    prateekgulati.github.io/project/tinyimagenet). The recipe reaches 35.7 % in twelve epochs, of which half are at
    32 px: 41 minutes of one core (docs/results.md). It still learns at its end; `--epochs 24` was not tried.
    """
    base = cifar10()
    rows = (
        Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=24, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=48, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=64, layers=1),
        Block("MBConv", expansion=4, kernel=3, stride=2, channels=128, layers=3, se=0.25),
    )
    return replace(
        base,
        name="tiny-imagenet",
        stages=_cpu_stages((32, 48, 64), epochs=12),
        data=replace(base.data, train="data/tiny-imagenet/train", val="data/tiny-imagenet/val"),
        model=replace(base.model, rows=rows),
    )


def tiny_imagenet_gpu() -> TrainConfig:
    """Tiny-ImageNet in full, for one GPU: EfficientNetV2-B0 on images enlarged to 64 to 128 px. Data as for
    `tiny_imagenet`.

    `python -m jobs.train tiny_imagenet_gpu`. What the recipe reaches was not measured.
    """
    return _on_gpu(tiny_imagenet(), epochs=60)


def _cpu_stages(sizes: tuple[int, int, int], *, epochs: float) -> tuple[TrainingStage, ...]:
    """Return the stages of `cifar10_progressive`, with weak regularization in the last two."""
    first, second, last = sizes
    return (
        TrainingStage(image_size=first, epochs=epochs / 2, batch_size=96, lr_factor=1.4),
        TrainingStage(image_size=second, epochs=epochs / 4, batch_size=48, lr_factor=2.0, randaugment_magnitude=2.0),
        TrainingStage(
            image_size=last, epochs=epochs / 4, batch_size=48, lr_factor=5.0, randaugment_magnitude=4.0, dropout=0.1
        ),
    )


def _on_gpu(base: TrainConfig, *, epochs: float) -> TrainConfig:
    return replace(
        base,
        name=f"{base.name}-gpu",
        stages=ramp(
            epochs=epochs,
            batch_size=480,
            image_size=(64, 128),
            randaugment_magnitude=(0, 9),
            mixup_alpha=(0, 0.2),
            dropout=(0.1, 0.3),
            size_multiple=16,
        ),
        data=replace(base.data, block_size=256, loader_workers=None),
        model=ModelConfig(name="efficientnet_v2_b0", norm_momentum=0.1),
        optimizer=replace(base.optimizer, warmup_epochs=5, ema_decay=0.999),
        trainer=replace(base.trainer, eval_every_epochs=1.0),
        cluster=ClusterConfig(num_workers=1, gpus_per_worker=1),
    )
