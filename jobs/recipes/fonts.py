"""Font identification on rendered words: a dataset on which image size and regularization matter."""

from __future__ import annotations

from dataclasses import replace

from datasets.config import DataConfig
from model.config import ModelConfig
from model.tables import Block
from pipeline.config import (
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from pipeline.schedule.stages import AdaptiveConfig, TrainingStage, ramp


def fonts() -> TrainConfig:
    """Which font is it? A set on which the effects of image size and regularization are large.

    `python -m jobs.prepare fonts --out data/fonts`, then `python -m jobs.train fonts`. The closed loop chooses the
    regularization: little while the model learns nothing by heart, which suits these data better than the linear ramp,
    though none at all was better still (docs/results.md). The image size grows as planned.
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
