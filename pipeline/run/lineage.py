"""A run's data and its kept checkpoints, as MLflow's page shows them: datasets and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from datasets.checks import TRUTH
from datasets.shards.manifest import DatasetManifest
from infra.tracking.lineage import BEST_TAG, METRIC_TAG, CheckpointModel, Dataset, model_name
from infra.tracking.mlflow_run import valid_name
from pipeline.checkpoint.catalog import CheckpointRow
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage

LABEL_TYPES = {"classification": "long", "segmentation": "binary", "multilabel": "string", "regression": "double"}
"""kind -> type of what each sample has besides its image, in MLflow's terms."""


def datasets_of(manifest: DatasetManifest, context: str) -> list[Dataset]:
    """Return the data of one split, one for each folder of a mixture; `context` is `training` or `validation`."""
    shards = sorted(manifest.shards, key=lambda shard: shard.index_folder)
    folders = {folder: tuple(group) for folder, group in groupby(shards, lambda shard: shard.index_folder)}
    in_order = dict.fromkeys(shard.index_folder for shard in manifest.shards)
    parts = {folder: replace(manifest, shards=folders[folder]) for folder in in_order}
    return [_dataset(folder, part, context) for folder, part in parts.items()]


def _dataset(folder: str, part: DatasetManifest, context: str) -> Dataset:
    truth, _ = TRUTH[part.kind]
    weights = sorted({shard.weight for shard in part.shards})
    return Dataset(
        name="/".join(folder.rstrip("/").split("/")[-2:]),
        digest=part.fingerprint,
        source=folder,
        context=context,
        columns={"image": "binary", truth: LABEL_TYPES[part.kind]},
        profile={"num_rows": part.num_samples, "num_classes": len(part.classes), "num_shards": len(part.shards)}
        | {"num_bytes": part.num_bytes}
        | ({"weight": ", ".join(f"{weight:g}" for weight in weights)} if weights != [1.0] else {}),
    )


def checkpoint_models(
    rows: Sequence[CheckpointRow], where: str, config: TrainConfig, validation: Sequence[Dataset]
) -> list[CheckpointModel]:
    """Return the valid checkpoints of a run in `where`, as models of MLflow."""
    return [_model(row, where, config, validation) for row in rows if not row.problem]


def _model(row: CheckpointRow, where: str, config: TrainConfig, validation: Sequence[Dataset]) -> CheckpointModel:
    rule = config.checkpoint
    tags = {"run": config.name, "size_bytes": str(row.bytes)}
    return CheckpointModel(
        name=model_name(f"{config.name}-{row.cursor}"),
        uri=f"{where}/{row.key}",
        step=row.cursor,
        params={"model": config.model.name, "cursor": str(row.cursor)} | _stage(row, config.stages),
        tags=tags | ({METRIC_TAG: valid_name(rule.best_metric), BEST_TAG: rule.best_is} if rule.best_metric else {}),
        metrics={valid_name(name): value for name, value in row.metrics.items()},
        datasets=[(one.name, one.digest) for one in validation],
    )


def _stage(row: CheckpointRow, stages: Sequence[TrainingStage]) -> dict[str, str]:
    """Return the settings of the stage that was trained last before a checkpoint; those of old ones don't say it."""
    done = {} if row.stage is None else {"stages_done": str(row.stage)}
    if row.trained_stage is None or row.trained_stage >= len(stages):
        return done
    stage = stages[row.trained_stage]
    facts = {"image_size": stage.image_size, "batch_size": stage.batch_size, "epochs": f"{stage.epochs:g}"}
    return done | {"stage": str(row.trained_stage + 1)} | {name: str(value) for name, value in facts.items()}
