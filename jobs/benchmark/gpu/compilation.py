"""torch.compile: seconds to the first step of each stage with empty caches, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._inductor.utils import fresh_cache

from jobs.benchmark.gpu.options import Options, unmixed, with_stages
from jobs.benchmark.gpu.speed import COMPILED, PLAIN, SpeedRow, side_by_side
from jobs.benchmark.gpu.trainers import clear
from pipeline.config import TrainConfig


def measure_compilation(config: TrainConfig, options: Options) -> list[SpeedRow]:
    """Measure every image size compiled beside the plain loop, which isn't; each starts with nothing compiled."""
    compiled = replace(config, trainer=replace(config.trainer, compile=True, checkpoint_activations=False))
    rows = []
    sizes = {stage.image_size: stage for stage in config.stages}
    for stage in [*sizes.values()][: 1 if options.tiny else None]:
        torch.compiler.reset()
        with fresh_cache():
            alone = with_stages(compiled, [unmixed(stage)], options.steps * (options.rounds + 2))
            rows += side_by_side(alone, options, (PLAIN,), COMPILED)
        clear()
    return rows
