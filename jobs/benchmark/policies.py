"""The adaptive rules beside the linear ramp: accuracy and CPU time of the same recipe, over some seeds.

Each run is one worker in this process, decided by a `StageController` as on a cluster.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import tyro
from rich.table import Table

from jobs.display import wide_console
from jobs.recipes import RECIPES
from pipeline.config import TrainConfig
from pipeline.stages import AdaptiveConfig

POLICIES: dict[str, Callable[[AdaptiveConfig], AdaptiveConfig]] = {
    "ramp": lambda rules: rules,
    "plateau-later": lambda rules: replace(rules, plateau=True, patience=2, unused="later"),
    "plateau-saved": lambda rules: replace(rules, plateau=True, patience=2, unused="saved"),
    "closed-loop": lambda rules: replace(rules, closed_loop=True),
}
"""What is compared: the recipe's rules, changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    recipe: Annotated[str, tyro.conf.Positional] = "fonts_small"
    """The recipe that all policies train."""
    train: str = "data/fonts-small/train"
    """Its training shards."""
    val: str = "data/fonts-small/val"
    """Its validation shards."""
    policies: tuple[str, ...] = tuple(POLICIES)
    """Which of the policies."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""
    epochs: float = 0.0
    """Epochs of all stages together; 0: the recipe's."""
    json: bool = False
    """Print a JSON line for each run instead of a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run gave."""

    policy: str
    seed: int
    accuracy: float
    """Of the moving average, at the end."""
    loss: float
    cpu_s: float
    """CPU seconds of the process, data and evaluations included."""
    epochs: float
    stage_epochs: tuple[float, ...]
    strengths: tuple[float, ...]
    """RandAugment's magnitude in each stage."""


def train(config: TrainConfig, policy: str) -> Run:
    """Train one run to its end."""
    import torch

    from datasets.config import check_data
    from datasets.loader import sample_order
    from model.factory import build_model
    from pipeline.controller import StageController
    from pipeline.decisions import Decision
    from pipeline.hooks import TrainHooks
    from pipeline.policy import Progress
    from pipeline.task import build_task
    from pipeline.trainer import Trainer

    class Hooks(TrainHooks):
        def __init__(self) -> None:
            self.controller = StageController(config.stages, 1, lambda segment: None, rules=config.adaptive)

        def decide(self, progress: Progress) -> tuple[Decision, ...]:
            return self.controller.decide(progress)

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    started = time.process_time()
    manifest, _ = check_data(config.data, batch_sizes=[], worker_counts=[])
    order = sample_order(config.data, manifest.shard_counts, seed=config.seed)
    task = build_task(config.task, manifest.classes)
    model = build_model(config.model, num_classes=task.num_outputs)
    trainer = Trainer(
        config, model=model, task=task, samples_per_epoch=order.samples_per_epoch, hooks=Hooks(), facts={}
    )
    trainer.run()
    spans = trainer.course.schedule.spans
    return Run(
        policy=policy,
        seed=config.seed,
        accuracy=trainer.state.evaluation["val/accuracy"],
        loss=trainer.state.evaluation["val/loss"],
        cpu_s=time.process_time() - started,
        epochs=trainer.state.cursor / order.samples_per_epoch,
        stage_epochs=tuple((span.stop - span.start) / order.samples_per_epoch for span in spans),
        strengths=tuple(span.stage.randaugment_magnitude for span in spans),
    )


def configs(options: Options) -> list[tuple[str, TrainConfig]]:
    """Return the runs: policy and config."""
    base = RECIPES[options.recipe]()
    factor = options.epochs / sum(stage.epochs for stage in base.stages) if options.epochs else 1.0
    stages = tuple(replace(stage, epochs=stage.epochs * factor) for stage in base.stages)
    data = replace(base.data, train=options.train, val=options.val, loader_workers=0)
    return [
        (name, replace(base, stages=stages, data=data, seed=seed, adaptive=POLICIES[name](base.adaptive)))
        for seed in options.seeds
        for name in options.policies
    ]


def summary(runs: Sequence[Run]) -> Table:
    """Return a row for each policy: means over the seeds, and the deviation of the accuracy."""
    table = Table(title=f"{len({run.seed for run in runs})} seeds, means", title_justify="left")
    for name in ("policy", "accuracy", "+-", "loss", "CPU s", "epochs", "epochs of the stages", "RandAugment"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for policy in dict.fromkeys(run.policy for run in runs):
        some = [run for run in runs if run.policy == policy]
        accuracies = [run.accuracy for run in some]
        table.add_row(
            policy,
            f"{statistics.mean(accuracies):.4f}",
            f"{statistics.stdev(accuracies):.4f}" if len(some) > 1 else "",
            f"{statistics.mean(run.loss for run in some):.3f}",
            f"{statistics.mean(run.cpu_s for run in some):.0f}",
            f"{statistics.mean(run.epochs for run in some):.1f}",
            " ".join(
                f"{statistics.mean(parts):.1f}" for parts in zip(*(run.stage_epochs for run in some), strict=True)
            ),
            " ".join(f"{statistics.mean(parts):.1f}" for parts in zip(*(run.strengths for run in some), strict=True)),
        )
    return table


def main(argv: Sequence[str]) -> int:
    """Train all runs, one after the other; print what they gave."""
    options = tyro.cli(Options, args=list(argv), description=__doc__)
    runs = []
    for policy, config in configs(options):
        runs.append(train(config, policy))
        if options.json:
            print(json.dumps(asdict(runs[-1])), flush=True)
    if not options.json:
        wide_console().print(summary(runs))
    return 0
