"""Segmentation on a CPU: street scenes (CamVid) and defects of magnetic tiles, minutes a run."""

from __future__ import annotations

from dataclasses import replace

from datasets.config import DataConfig
from infra.cluster.config import ClusterConfig
from model.config import ModelConfig
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage, ramp
from pipeline.task_config import SegmentationConfig
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig


def camvid() -> TrainConfig:
    """CamVid's street scenes in 11 classes, at 64x48 to 128x96 px: a run takes about a minute of one core.

    From the published folders train, val and test with their ...annot (SegNet's tutorial, 480x360, value 11 is void):

        python -m jobs.prepare masks CamVid/train --masks CamVid/trainannot --also-short-side 160 --out data/camvid \\
            --val-images CamVid/val --val-masks CamVid/valannot \\
            --test-images CamVid/test --test-masks CamVid/testannot \\
            --classes sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist,void --ignore void

    SegNet's paper reports a mean IoU of about 0.6 on test, after long training at 480x360 on a GPU. Eight epochs of
    this reach 0.37 on val: `python -m jobs.train camvid --trainer.precision bf16`; with `--epochs 14` 0.44
    (docs/results.md).
    """
    return TrainConfig(
        name="camvid",
        stages=_stages((48, 4), (64, 2), (96, 2)),
        data=DataConfig(
            train="data/camvid/train",
            val="data/camvid/val",
            num_lanes=4,
            block_size=32,
            aspect_ratio=1.333,
            crop_area=(0.4, 1.0),
            eval_crop="whole",
            loader_workers=0,
        ),
        model=ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0.0, norm_momentum=0.1),
        task=SegmentationConfig(lovasz_weight=1.0),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=4e-3, weight_decay=0.02, warmup_epochs=0.5, schedule="cosine", ema_decay=0.98
        ),
        trainer=TrainerConfig(eval_every_epochs=2, eval_batch_size=16),
        checkpoint=CheckpointConfig(every_epochs=2, best_metric="val/miou"),
        cluster=ClusterConfig(num_workers=1),
    )


def magnetic_tiles() -> TrainConfig:
    """Defects of magnetic tiles, found or not in each pixel, at 64 to 128 px: about four minutes of a core.

    From the published folders MT_Blowhole, MT_Break, MT_Crack, MT_Fray, MT_Free and MT_Uneven, in a folder of their own
    (a fifth of each is for validation, a fifth for testing):

        python -m jobs.prepare masks tiles --classes background,defect --binary --val-share 0.2 --test-share 0.2 \\
            --out data/tiles

    To hold it against: DEU-Net reports a mean IoU of 66.9 % and an F1 score of 74.9 % with 37 M parameters, on a split
    of its own (Applied Sciences 14(11), 4724). `python -m jobs.train magnetic_tiles --trainer.precision bf16` reaches
    57.9 to 61.8 % with 1.3 M and seeds 0 to 2, 62.6 and 63.4 % on another processor (docs/results.md).
    """
    base = camvid()
    return replace(
        base,
        name="magnetic-tiles",
        stages=ramp(epochs=18, batch_size=24, image_size=(64, 128), dropout=(0.0, 0.1), num_stages=3),
        data=replace(base.data, train="data/tiles/train", val="data/tiles/val", aspect_ratio=1.0),
        task=SegmentationConfig(),
        optimizer=replace(base.optimizer, lr=1e-3),
        trainer=replace(base.trainer, eval_every_epochs=6),
        checkpoint=replace(base.checkpoint, every_epochs=6),
    )


def _stages(*rows: tuple[int, float]) -> tuple[TrainingStage, ...]:
    """Return stages of (image size, epochs), in which dropout grows to 0.1."""
    last = len(rows) - 1
    return tuple(
        TrainingStage(image_size=size, epochs=epochs, batch_size=8, dropout=0.1 * index / last)
        for index, (size, epochs) in enumerate(rows)
    )
