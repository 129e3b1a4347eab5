"""Speed of our models compared with torchvision's and timm's of the same name, in turn, in one process."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from jobs.benchmark.flags import check_at_least, read_flags
from jobs.common.device import chosen_device
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from model.checks import check_image_size, check_model
from model.config import ModelConfig
from model.factory import build_model
from model.regularization import set_dropout

STOCHASTIC_DEPTH = 0.2
DROPOUT = 0.2
NUM_CLASSES = 1000

TIMM_NAMES = {
    "efficientnet_lite0": "efficientnet_lite0",
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(8)},
    **{f"efficientnet_v2_{size}": f"efficientnetv2_{size}" for size in ("s", "m", "l", "xl")},
    **{f"efficientnet_v2_b{i}": f"tf_efficientnetv2_b{i}" for i in range(4)},
    **{
        f"swin_{s}": f"swin_{size}_patch4_window7_224" for s, size in zip("tsb", ("tiny", "small", "base"), strict=True)
    },
    **{f"resnet{depth}": f"resnet{depth}" for depth in (50, 152)},
}
"""timm's models of the same architecture; those of V2's B0-B3 exist with TensorFlow's padding only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    names: tuple[str, ...] = ("efficientnet_b0", "efficientnet_v2_b0", "efficientnet_v2_s")
    """Models to time."""
    batch_size: int = 16
    """Images per step."""
    image_size: int = 128
    """Image size, in pixels."""
    rounds: int = 15
    """Timed rounds; in each, every library's model runs once, in alternating order."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: under autocast."""
    threads: int = 0
    """CPU threads; 0: PyTorch's default."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: CPU time of this process, which is less sensitive to other load; for one thread only, since waiting threads
    count. wall: elapsed time."""
    compile: bool = False
    """Compile all of the models."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "image_size", "rounds")
        check_at_least(self, 0, "threads")
        if self.clock == "cpu" and self.device.startswith("cuda"):
            raise UsageError("--clock cpu: a GPU's work is not in the process's CPU time; use wall")
        for name in self.names:
            check_model(ModelConfig(name=name))
            check_image_size(ModelConfig(name=name), self.image_size)
        chosen_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRatio:
    """One of our models compared with one library's, for one kind of step."""

    name: str
    step: str
    library: str
    ours_ms: float
    """Median of ours."""
    theirs_ms: float
    """Median of theirs."""
    ratio: float
    """Median over the rounds of theirs / ours in the same round: above 1, ours is faster."""
    ratio_low: float
    """First quartile of that ratio."""
    ratio_high: float
    """Third quartile of that ratio."""


def run(options: Options) -> list[SpeedRatio]:
    """Time all models, one name after another."""
    if options.threads:
        torch.set_num_threads(options.threads)
    comparisons = []
    for name in options.names:
        made = _candidates(name, options.image_size)
        candidates = {library: _prepared(model, options) for library, model in made.items()}
        for step_name, step in (("forward", _forward), ("forward+backward", _forward_backward)):
            for model in candidates.values():
                model.train(step is _forward_backward)
            seconds = _time_in_turn(candidates, step, options)
            comparisons += [_compare(name, step_name, library, seconds) for library in candidates if library != "ours"]
    return comparisons


def _candidates(name: str, image_size: int) -> dict[str, nn.Module]:
    config = ModelConfig(name=name, stochastic_depth=STOCHASTIC_DEPTH)
    ours = build_model(config, num_classes=NUM_CLASSES)
    set_dropout(ours, DROPOUT)
    candidates = {"ours": ours}
    if name in models.list_models():
        candidates["torchvision"] = models.get_model(name)
    if name in TIMM_NAMES:
        import timm

        fields: dict[str, Any] = {} if name.startswith("resnet") else {"drop_path_rate": STOCHASTIC_DEPTH}
        if name.startswith("swin"):
            fields["img_size"] = image_size  # timm makes its windows and position biases for one size
        candidates["timm"] = timm.create_model(TIMM_NAMES[name], drop_rate=DROPOUT, **fields)
    if len(candidates) == 1:
        raise ValueError(f"names: neither torchvision nor timm has {name}")
    return candidates


def _prepared(model: nn.Module, options: Options) -> nn.Module:
    model = model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast(nn.Module, torch.compile(model)) if options.compile else model


Step = Callable[[nn.Module, Tensor, Tensor], None]


def _forward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        model(images)


def _forward_backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(images).float(), labels).backward()
    model.zero_grad(set_to_none=True)


def _time_in_turn(candidates: dict[str, nn.Module], step: Step, options: Options) -> dict[str, list[float]]:
    """Seconds of each round by library; two rounds before are not counted."""
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, device=options.device).to(memory_format=torch.channels_last)
    labels = torch.randint(NUM_CLASSES, (options.batch_size,), device=options.device)
    autocast = torch.autocast(torch.device(options.device).type, torch.bfloat16, options.precision == "bfloat16")
    seconds: dict[str, list[float]] = {library: [] for library in candidates}
    shuffle = random.Random(0)
    for round_number in range(-2, options.rounds):
        for library in shuffle.sample(list(candidates), len(candidates)):
            start = _now(options)
            with autocast:
                step(candidates[library], images, labels)
            if round_number >= 0:
                seconds[library].append(_now(options) - start)
    return seconds


def _now(options: Options) -> float:
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if options.clock == "cpu" else time.perf_counter()


def _compare(name: str, step: str, library: str, seconds: dict[str, list[float]]) -> SpeedRatio:
    ratios = [theirs / ours for theirs, ours in zip(seconds[library], seconds["ours"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return SpeedRatio(
        name=name,
        step=step,
        library=library,
        ours_ms=1000 * statistics.median(seconds["ours"]),
        theirs_ms=1000 * statistics.median(seconds[library]),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )


def as_table(comparisons: Sequence[SpeedRatio], options: Options) -> Table:
    """The comparisons for the terminal."""
    compiled = ", compiled" if options.compile else ""
    title = (
        f"{options.batch_size} images of {options.image_size} px, {options.precision}, {options.device}, channels_last"
        f"{compiled}\nratio: theirs / ours, median (quartiles) of {options.rounds} rounds"
    )
    table = Table(title=title, title_justify="left")
    for column in ("model", "step", "library", "ours ms", "theirs ms", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "step", "library") else "right")
    for c in comparisons:
        ratio = f"{c.ratio:.2f} ({c.ratio_low:.2f}-{c.ratio_high:.2f})"
        table.add_row(c.name, c.step, c.library, f"{c.ours_ms:.1f}", f"{c.theirs_ms:.1f}", ratio)
    return table


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = read_flags(Options, argv, __doc__)
    comparisons = run(options)
    if options.json:
        print(json.dumps([asdict(comparison) for comparison in comparisons], indent=1))
    else:
        wide_console().print(as_table(comparisons, options))
    return 0
