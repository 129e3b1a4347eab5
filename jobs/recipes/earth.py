"""Segmentation of the Earth's climate zones (Blue Marble)."""

from __future__ import annotations

from datasets.config import DataConfig
from model.config import ModelConfig
from pipeline.config import TrainConfig
from pipeline.schedule.stages import ramp
from pipeline.task_config import SegmentationConfig
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig


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
