"""One recipe a task, for any prepared data: the rules choose what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datasets.config import DataConfig
from datasets.transforms.shape import format_size
from infra.cluster.config import ClusterConfig
from jobs.recipes.facts import Facts
from jobs.recipes.rules import Loss, Rules, Task
from model.config import TIMM_PREFIX, ModelConfig, architecture_of
from model.pretrained import LITE0
from pipeline.config import TrainConfig
from pipeline.schedule.curves import curves
from pipeline.schedule.stages import TrainingStage, ramp
from pipeline.task_config import (
    ClassificationConfig,
    MultilabelConfig,
    RegressionConfig,
    SegmentationConfig,
    TaskConfig,
)
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig

TYPICAL = Facts()
"""What a generic recipe follows from where nothing is known, as in its help."""
Recipe = Callable[..., TrainConfig]
"""A generic recipe: called with facts, and by name `weights` (`model.init_from`) and `model` (`model.name`)."""
TORCHVISION_EPS = tuple(f"efficientnet_b{number}" for number in range(5))
"""Models whose weights in torchvision were trained with its own epsilon of BatchNorm."""


def classify(facts: Facts = TYPICAL, *, weights: str = "", model: str = "") -> TrainConfig:
    """Any prepared images of classes, from scratch: `python -m jobs.train classify --data DIR` is enough.

    Model, image sizes, length, batch and rate follow from the data and the machine; `jobs.plan classify --data DIR`
    prints each with its reason, and every one has a flag. A run resumes with the facts that it began with.
    """
    return config_of("classify", rules_of("classify", facts, weights, model))


def finetune(facts: Facts = TYPICAL, *, weights: str = "", model: str = "") -> TrainConfig:
    """Any prepared images of classes, from ImageNet's weights: `python -m jobs.train finetune --data DIR` is enough.

    The weights are EfficientNet-Lite0's, of the extra `lite0`; `--init-from` takes others: torchvision, timm, a run's
    folder, or a file with `--model.name`. The rest is as in `classify`.
    """
    return config_of("finetune", rules_of("finetune", facts, weights, model))


def segment(facts: Facts = TYPICAL, *, weights: str = "", model: str = "") -> TrainConfig:
    """Any prepared images with masks: `python -m jobs.train segment --data DIR` is enough.

    As `classify`, by a U-Net; `--init-from lite0` gives its encoder ImageNet's weights.
    """
    return config_of("segment", rules_of("segment", facts, weights, model))


def multilabel(facts: Facts = TYPICAL, *, weights: str = "", model: str = "") -> TrainConfig:
    """Any prepared images with several labels each: `python -m jobs.train multilabel --data DIR` is enough.

    As `classify`, with a sigmoid for each class; `--init-from lite0` begins with ImageNet's weights.
    """
    return config_of("multilabel", rules_of("multilabel", facts, weights, model))


def regress(facts: Facts = TYPICAL, *, weights: str = "", model: str = "") -> TrainConfig:
    """Any prepared images with numbers to estimate: `python -m jobs.train regress --data DIR` is enough.

    As `classify`, with an output for each number; `--init-from lite0` begins with ImageNet's weights. Images are shown
    as they are: flags turn on what can't change these numbers, as --data.flip True.
    """
    return config_of("regress", rules_of("regress", facts, weights, model))


GENERIC: dict[str, Recipe] = {recipe.__name__: recipe for recipe in (classify, finetune, segment, multilabel, regress)}
TASKS: dict[str, Task] = {
    "classify": "classification",
    "finetune": "classification",
    "segment": "segmentation",
    "multilabel": "multilabel",
    "regress": "regression",
}
"""Generic recipe -> the kind of data that it is for."""
FITTING: dict[str, str] = {
    kind: " or ".join(name for name, task in TASKS.items() if task == kind) for kind in TASKS.values()
}
"""Kind of data -> the recipes for it."""
BEST_METRICS: dict[Task, str] = {
    "classification": "val/accuracy",
    "segmentation": "val/miou",
    "multilabel": "val/map",
    "regression": "val/mae",
}
DEFAULT_WEIGHTS = {"finetune": "lite0"}
"""Generic recipe -> the weights that it begins with, where no others are given."""


def rules_of(recipe: str, facts: Facts, weights: str = "", model: str = "") -> Rules:
    """Return the rules that make a generic recipe's config of the facts."""
    weights = weights or DEFAULT_WEIGHTS.get(recipe, "")
    return Rules(task=TASKS[recipe], facts=facts, weights=weights, model=model)


def config_of(name: str, rules: Rules) -> TrainConfig:
    """Return the config that the rules make."""
    facts, epochs, workers, shown = rules.facts, rules.epochs.value, rules.workers.value, rules.augmentation.value
    every = max(1.0, epochs / 10)
    model = _model(rules)
    mean, std = _pixels(rules.weights, model.name)
    return TrainConfig(
        name=name,
        stages=_stages(rules),
        data=DataConfig(
            num_lanes=workers.lanes,
            block_size=32 if facts.samples < 20_000 else 256,
            aspect_ratio=rules.aspect_ratio.value,
            crop_area=shown.crop_area,
            flip=shown.flip,
            eval_crop="whole",
            loader_workers=None if facts.gpus else 0,
            pixel_type=facts.pixel_type,
            channels=facts.channels,
            randaugment_policy="torchvision" if facts.pixels.is_rgb else "geometric",
        ),
        model=model,
        task=_task(rules),
        optimizer=_optimizer(rules),
        trainer=TrainerConfig(eval_every_epochs=every, pixel_mean=mean, pixel_std=std),
        checkpoint=CheckpointConfig(
            every_epochs=every,
            best_metric=BEST_METRICS[rules.task],
            best_is="lowest" if rules.task == "regression" else "highest",
        ),
        cluster=ClusterConfig(
            num_workers=workers.number, cpus_per_worker=workers.cpus, gpus_per_worker=1 if facts.gpus else 0
        ),
    )


def chosen_values(config: TrainConfig) -> dict[str, str]:
    """Return in words what the rules chose, by the names of `Rules.reasons`."""
    data = config.data
    growing = {name: values for name, values in curves(config.stages).items() if name != "image size"}
    weights = f" from {config.model.init_from}" if config.model.init_from else ""
    return {
        "model": f"{config.model.name}{', own rows' if config.model.rows else ''}{weights}",
        "image sizes": " ".join(format_size(stage.image_size, data.aspect_ratio) for stage in config.stages),
        "aspect ratio": f"{data.aspect_ratio:g}",
        "epochs": f"{sum(stage.epochs for stage in config.stages):g}",
        "batch size": f"{config.stages[-1].batch_size}",
        "learning rate": f"{config.optimizer.lr:g}",
        "loss": _loss_of(config.task),
        "augmentation": _augmentation_of(data),
        "regularization": ", ".join(f"{name} {values[0]:g} - {values[-1]:g}" for name, values in growing.items())
        or "none",
        "workers": f"{config.cluster.num_workers}, {config.cluster.cpus_per_worker:g} CPUs each",
    }


def _augmentation_of(data: DataConfig) -> str:
    smallest, largest = data.crop_area
    crops = "whole images" if smallest == 1 else f"crops of {smallest:.0%} to {largest:.0%} of the area"
    return f"{crops}, half of them mirrored" if data.flip else crops


def _stages(rules: Rules) -> tuple[TrainingStage, ...]:
    sizes, growing = rules.sizes.value, rules.regularization.value
    return ramp(
        epochs=rules.epochs.value,
        batch_size=rules.batch_size.value,
        image_size=(sizes.first, sizes.last),
        randaugment_magnitude=growing.randaugment,
        mixup_alpha=growing.mixup,
        dropout=growing.dropout,
        num_stages=sizes.num_stages,
        size_multiple=sizes.multiple,
    )


def _model(rules: Rules) -> ModelConfig:
    name, rows = rules.network.value
    model = ModelConfig(name=name, init_from=rules.weights or None, in_channels=rules.facts.channels)
    if architecture_of(model) is None:
        return replace(model, stochastic_depth=0.0)
    own_eps = rules.weights == "torchvision" and name.removeprefix("unet_") in TORCHVISION_EPS
    return replace(
        model,
        rows=rows,
        # The weights of the authors' EfficientNets are TensorFlow's; torchvision's are not.
        same_padding=rules.weights in ("lite0", "timm"),
        stochastic_depth=0.0 if rows else 0.1,
        norm_momentum=0.1,
        norm_eps=1e-5 if own_eps else None,
    )


def _task(rules: Rules) -> TaskConfig:
    if rules.task == "multilabel":
        return MultilabelConfig(loss="asymmetric" if rules.loss.value == "asymmetric" else "bce")
    if rules.task == "regression":
        return RegressionConfig()
    return SegmentationConfig() if rules.masks else ClassificationConfig()


def _loss_of(task: TaskConfig) -> Loss:
    if isinstance(task, MultilabelConfig):
        return task.loss
    if isinstance(task, RegressionConfig):
        return "mse"
    return "cross-entropy and Dice" if isinstance(task, SegmentationConfig) else "cross-entropy"


def _optimizer(rules: Rules) -> OptimizerConfig:
    epochs = rules.epochs.value
    steps = epochs * rules.facts.samples / rules.batch_size.value
    return OptimizerConfig(
        optimizer="adamw",
        lr=rules.learning_rate.value,
        weight_decay=0.0 if rules.weights else 0.05,
        warmup_epochs=min(2.0, epochs / 10),
        schedule="cosine",
        ema_decay=round(1 - 1 / min(10_000.0, max(20.0, 0.02 * steps)), 4),  # a fiftieth of the steps
    )


def _pixels(weights: str, model: str) -> tuple[float, float]:
    """Return the mean and the standard deviation that the weights were trained with, one for all channels."""
    name = model.removeprefix("unet_")
    if name == LITE0:
        return 127.0, 128.0
    if weights not in ("torchvision", "timm"):
        return 128.0, 128.0
    halves = name.startswith(tuple(f"efficientnet_v2_{size}" for size in ("s", "m", "l", "xl")))
    if name == "efficientnet_v2_l" or (weights == "timm" and halves) or name.startswith(f"{TIMM_PREFIX}vit"):
        return 127.5, 127.5
    return 114.5, 57.6  # ImageNet's, over the three channels
