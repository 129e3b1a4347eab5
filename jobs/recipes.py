"""The named recipes. A recipe is a function that returns a whole `TrainConfig`; a variant calls its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from datasets.config import DataConfig
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import (
    CheckpointConfig,
    ClassificationConfig,
    OptimizerConfig,
    SegmentationConfig,
    TrainConfig,
    TrainerConfig,
)
from pipeline.stages import AdaptiveConfig, TrainingStage, ramp


def demo() -> TrainConfig:
    """Photographs of solar cells (ELPV): is the cell defective? A small EfficientNetV2, four stages.

    `make demo` prepares the data and runs it.
    """
    return TrainConfig(
        name="demo",
        stages=ramp(
            epochs=24,
            batch_size=48,
            image_size=(64, 128),
            randaugment_magnitude=(0, 3),
            mixup_alpha=(0, 0.1),
            dropout=(0.1, 0.2),
            size_multiple=16,
        ),
        data=DataConfig(
            train="data/elpv/train", val="data/elpv/val", block_size=32, crop_area=(0.7, 1.0), loader_workers=0
        ),
        model=ModelConfig(name="efficientnet_v2_tiny", stochastic_depth=0.1, norm_momentum=0.1),
        task=ClassificationConfig(label_smoothing=0.05),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=4e-3, weight_decay=0.05, warmup_epochs=2, schedule="cosine", ema_decay=0.98
        ),
    )


def demo_adaptive() -> TrainConfig:
    """The demo with stages that end on a plateau and regularization that follows the gap of the losses.

    See docs/control.md. Unused epochs go to the later, larger stages.
    """
    base = demo()
    rules = AdaptiveConfig(plateau=True, patience=3, min_epochs=3, closed_loop=True, gap=0.1)
    return replace(base, name="demo-adaptive", adaptive=rules)


def elpv_transfer() -> TrainConfig:
    """Solar cells again (ELPV), with EfficientNet-Lite0 fine-tuned from ImageNet's weights.

    As the paper fine-tunes: a low rate, a cosine, no weight decay; all weights are trained.
    `python -m jobs.weights efficientnet_lite0 --out data/lite0.safetensors` makes the file. Accuracy over three seeds:
    0.842, where training from nothing gives 0.782 (docs/transfer.md).
    """
    base = elpv_scratch()
    return replace(
        base,
        name="elpv-transfer",
        model=replace(base.model, init_from="data/lite0.safetensors"),
        optimizer=replace(base.optimizer, lr=1e-3, weight_decay=0.0),
    )


def elpv_frozen() -> TrainConfig:
    """As elpv_transfer, but only the classifier is trained: the encoder keeps its weights and statistics."""
    base = elpv_transfer()
    return replace(
        base,
        name="elpv-frozen",
        model=replace(base.model, frozen=True, stochastic_depth=0.0),
        optimizer=replace(base.optimizer, lr=1e-2),
    )


def elpv_scratch() -> TrainConfig:
    """What elpv_transfer is compared with: the same model, data and steps, from nothing, at the demo's rate.

    Accuracy over three seeds: 0.782 (docs/transfer.md).
    """
    base = demo()
    return replace(
        base,
        name="elpv-scratch",
        stages=ramp(epochs=6, batch_size=48, image_size=(64, 96), dropout=(0.1, 0.2), num_stages=2),
        data=replace(base.data, eval_crop="whole"),
        model=ModelConfig(name="efficientnet_lite0", same_padding=True, stochastic_depth=0.1, norm_momentum=0.1),
        optimizer=replace(base.optimizer, warmup_epochs=1),
        trainer=TrainerConfig(eval_every_epochs=3, pixel_mean=127.0),
    )


def unet_demo() -> TrainConfig:
    """The Earth from space (Blue Marble): which climate is where? An EfficientUNet, three stages.

    `python -m jobs.prepare bluemarble --out data/bluemarble`, then `python -m jobs.train unet_demo`: mIoU 0.634
    (docs/segmentation.md).
    """
    return TrainConfig(
        name="unet-demo",
        stages=ramp(
            epochs=60,
            batch_size=24,
            image_size=(64, 128),
            randaugment_magnitude=(0, 0),
            dropout=(0.0, 0.2),
            num_stages=3,
            size_multiple=32,
        ),
        data=DataConfig(
            train="data/bluemarble/train",
            val="data/bluemarble/val",
            block_size=32,
            crop_area=(0.5, 1.0),
            eval_crop="whole",
            loader_workers=0,
        ),
        model=ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0.1, norm_momentum=0.1),
        task=SegmentationConfig(),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=3e-3, weight_decay=0.02, warmup_epochs=2, schedule="cosine", ema_decay=0.99
        ),
        trainer=TrainerConfig(eval_every_epochs=10, eval_batch_size=24),
        checkpoint=CheckpointConfig(every_epochs=5, best_metric="val/miou"),
    )


def fonts() -> TrainConfig:
    """Which font is it? A set on which the effects of image size and regularization are large.

    `python -m jobs.prepare fonts --out data/fonts`, then `python -m jobs.train fonts`. The closed loop chooses the
    regularization, which beat the linear ramp on such data (docs/control.md); the image size grows as planned.
    """
    return TrainConfig(
        name="fonts",
        stages=ramp(
            epochs=40,
            batch_size=48,
            image_size=(64, 128),
            randaugment_magnitude=(0, 5),
            mixup_alpha=(0, 0.1),
            dropout=(0.1, 0.3),
            size_multiple=16,
        ),
        data=DataConfig(
            train="data/fonts/train",
            val="data/fonts/val",
            block_size=32,
            crop_area=(0.7, 1.0),
            flip=False,  # letters have a side
            loader_workers=0,
        ),
        model=ModelConfig(name="efficientnet_v2_tiny", stochastic_depth=0.1, norm_momentum=0.1),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=4e-3, weight_decay=0.05, warmup_epochs=2, schedule="cosine", ema_decay=0.98
        ),
        adaptive=AdaptiveConfig(closed_loop=True),
    )


def fonts_small() -> TrainConfig:
    """Eight fonts and a small net: a run takes half a minute of one core, for sweeps and searches on a CPU.

    Its regularization is the linear ramp, which sweeps and comparisons are about.

    `python -m jobs.prepare fonts --families 8 --train-images 500 --val-images 125 --size 64 --text-size 22 30
    --rotation 4 --noise 5 --out data/fonts-small`.
    """
    base = fonts()
    rows = (
        Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=24, layers=1),
        Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=40, layers=1),
        Block("MBConv", expansion=4, kernel=3, stride=2, channels=64, layers=2, se=0.25),
    )
    return replace(
        base,
        name="fonts-small",
        stages=ramp(
            epochs=4,
            batch_size=24,
            image_size=(32, 56),
            randaugment_magnitude=(0, 6),
            mixup_alpha=(0, 0.1),
            dropout=(0.0, 0.2),
            size_multiple=8,
        ),
        data=replace(base.data, train="data/fonts-small/train", val="data/fonts-small/val", eval_crop="whole"),
        model=ModelConfig(name="efficientnet_v2_tiny", rows=rows, stochastic_depth=0.0, norm_momentum=0.1),
        optimizer=replace(base.optimizer, warmup_epochs=0.5),
        adaptive=AdaptiveConfig(),
    )


def fonts_progressive() -> TrainConfig:
    """Sixteen fonts at 128 px in five stages, of 0.42 times the images x pixels of 128 px all the time.

    `python -m jobs.prepare fonts --families 16 --train-images 100 --val-images 90 --text-size 44 64 --rotation 8
    --noise 10 --out data/fonts-words`, then `python -m jobs.compare progressive-vs-fixed --recipe fonts_progressive`.
    Half of the epochs are spent at a quarter of the pixels, on crops from the letters' size in the last stage to nearly
    the whole image; the last stages' rate is higher, since a network that the cosine has nearly frozen doesn't take to
    larger images any more. There is no RandAugment: this set wants none.
    """
    base = fonts_small()
    plan: dict[int, tuple[float, float, tuple[float, float] | None]] = {
        64: (21.0, 1.0, (0.2, 0.8)),
        80: (7.0, 1.0, (0.3, 0.85)),
        96: (5.0, 1.0, (0.4, 0.9)),
        112: (4.0, 1.5, (0.55, 0.95)),
        128: (3.0, 3.0, None),
    }
    return replace(
        base,
        name="fonts-progressive",
        stages=tuple(
            TrainingStage(image_size=size, epochs=epochs, batch_size=48, dropout=0.1, lr_factor=factor, crop_area=area)
            for size, (epochs, factor, area) in plan.items()
        ),
        data=replace(base.data, train="data/fonts-words/train", val="data/fonts-words/val"),
        optimizer=replace(base.optimizer, lr=8e-3, warmup_epochs=1),
        trainer=TrainerConfig(eval_every_epochs=2, eval_batch_size=100),
    )


def efficientnetv2_s_paper() -> TrainConfig:
    """EfficientNetV2-S on ImageNet, stages as the paper prints them (arXiv 2104.00298, table 6)."""
    return _imagenet("s", "paper")


def efficientnetv2_m_paper() -> TrainConfig:
    """EfficientNetV2-M on ImageNet, stages as the paper prints them."""
    return _imagenet("m", "paper")


def efficientnetv2_l_paper() -> TrainConfig:
    """EfficientNetV2-L on ImageNet, stages as the paper prints them."""
    return _imagenet("l", "paper")


def efficientnetv2_s_google() -> TrainConfig:
    """EfficientNetV2-S on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("s", "google")


def efficientnetv2_m_google() -> TrainConfig:
    """EfficientNetV2-M on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("m", "google")


def efficientnetv2_l_google() -> TrainConfig:
    """EfficientNetV2-L on ImageNet, stages as the authors' released code makes them."""
    return _imagenet("l", "google")


IMAGENET_SHARDS = "s3://YOUR-BUCKET/imagenet/train"
"""Where the ImageNet recipes look for training shards until `--data.train` says otherwise."""

# Last training size, evaluation size, RandAugment's, Mixup's (and CutMix's) and dropout's last values.
_PAPER = {"s": (300, 384, 15, 0.0, 0.3), "m": (380, 480, 20, 0.2, 0.4), "l": (380, 480, 25, 0.5, 0.5)}
_GOOGLE = {"s": (300, 384, 10, 0.0, 0.2), "m": (384, 480, 15, 0.2, 0.3), "l": (384, 480, 20, 0.5, 0.4)}


def _imagenet(size: Literal["s", "m", "l"], preset: Literal["paper", "google"]) -> TrainConfig:
    last, eval_size, magnitude, mixup, dropout = (_PAPER if preset == "paper" else _GOOGLE)[size]
    stages = ramp(
        epochs=350,
        batch_size=4096,
        image_size=(128, last),
        randaugment_magnitude=(5, magnitude),
        mixup_alpha=(0, mixup),
        # The released code ramps both to the same alpha and gives each one half of a batch (google/automl).
        cutmix_alpha=(0, mixup if preset == "google" else 0.0),
        dropout=(0.1, dropout),
    )
    if preset == "google":  # the released code: sizes don't begin at the smallest, and dropout is constant
        stages = tuple(
            replace(stage, image_size=int(128 + (last - 128) * (index + 1) / len(stages)), dropout=dropout)
            for index, stage in enumerate(stages)
        )
    return TrainConfig(
        name=f"efficientnetv2-{size}-{preset}",
        storage="s3://YOUR-BUCKET/runs",
        stages=stages,
        data=DataConfig(train=IMAGENET_SHARDS, val="s3://YOUR-BUCKET/imagenet/val", num_lanes=64),
        model=ModelConfig(name=f"efficientnet_v2_{size}", norm_momentum=0.01 if preset == "paper" else 0.1),
        optimizer=OptimizerConfig(),
        trainer=TrainerConfig(eval_scale=eval_size / last, log_every=50),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        demo,
        demo_adaptive,
        elpv_transfer,
        elpv_frozen,
        elpv_scratch,
        unet_demo,
        fonts,
        fonts_small,
        fonts_progressive,
        efficientnetv2_s_paper,
        efficientnetv2_m_paper,
        efficientnetv2_l_paper,
        efficientnetv2_s_google,
        efficientnetv2_m_google,
        efficientnetv2_l_google,
    )
}
