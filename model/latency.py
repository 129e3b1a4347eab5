"""How long training steps take: whole models, and single blocks as a table from which a model's step is estimated.

On a CPU with one thread it is the process's own CPU time, which other processes disturb less than wall-clock time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig, architecture_of
from model.factory import build_model
from model.tables import Block

Choice = tuple[str, int, int]
"""Operator, kernel, expansion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The step that is timed: forward and backward of one worker's batch."""

    batch_size: int
    image_shape: tuple[int, int]
    """Height and width in pixels."""
    num_classes: int
    device: str = "cpu"
    bf16: bool = False
    """Under autocast to bfloat16."""
    repeats: int = 7
    """Steps of which the median is taken; two before them are not counted."""


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds of blocks and of all that is no block."""

    rest_s: float
    """Stem, head, classifier and loss: what the base takes outside its blocks."""
    blocks: Mapping[tuple[int, str, int, int, bool], float]
    """Seconds by row, operator, kernel, expansion, and whether it is the row's first block."""

    def estimate(self, rows: Sequence[Block]) -> float:
        """Return the seconds of a model with these rows."""
        return self.rest_s + sum(_row_s(self.blocks, index, row) for index, row in enumerate(rows))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"rest_s": self.rest_s, "blocks": [[*key, value] for key, value in self.blocks.items()]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LatencyTable:
        """Return what `to_json` made JSON of."""
        return cls(values["rest_s"], {(*key,): value for *key, value in values["blocks"]})


def _row_s(blocks: Mapping[tuple[int, str, int, int, bool], float], index: int, row: Block) -> float:
    key = (index, row.operator, row.kernel, row.expansion)
    return blocks[*key, True] + (row.layers - 1) * blocks[*key, False]


def measure_table(config: ModelConfig, choices: Sequence[Choice], work: Workload) -> LatencyTable:
    """Time a first and a further block of every row in every choice, and the base as a whole."""
    architecture = architecture_of(config)
    assert architecture is not None
    blocks: dict[tuple[int, str, int, int, bool], float] = {}
    for operator, kernel, expansion in choices:
        rows = tuple(with_choice(replace(row, layers=2), (operator, kernel, expansion)) for row in architecture.blocks)
        model = _prepared(replace(config, rows=rows, fused_rows=()), work)
        inputs = _inputs_of_blocks(model, work)
        for index, first in product(range(len(rows)), (True, False)):
            block = model.get_submodule(f"features.{index + 1}.{0 if first else 1}")
            blocks[index, operator, kernel, expansion, first] = _time(_block_step(block, inputs[block], work), work)
    base_s = measure_model(config, work)
    rest_s = base_s - sum(_row_s(blocks, index, row) for index, row in enumerate(architecture.blocks))
    return LatencyTable(rest_s, blocks)


def measure_model(config: ModelConfig, work: Workload) -> float:
    """Return the seconds of a whole model's step."""
    model = _prepared(config, work)
    images = torch.randn(work.batch_size, config.in_channels, *work.image_shape, device=work.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(work.num_classes, (work.batch_size,), device=work.device)

    def step() -> None:
        with torch.autocast(torch.device(work.device).type, torch.bfloat16, work.bf16):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        model.zero_grad(set_to_none=True)

    return _time(step, work)


def with_choice(row: Block, choice: Choice) -> Block:
    """Return a row with another operator, kernel and expansion; MBConv gates its channels, Fused-MBConv can't."""
    operator, kernel, expansion = choice
    se = 0.25 if operator == "MBConv" else 0.0
    return replace(row, operator=operator, kernel=kernel, expansion=expansion, se=se)  # type: ignore[arg-type]


def _prepared(config: ModelConfig, work: Workload) -> nn.Module:
    model = build_model(config, num_classes=work.num_classes)
    return model.to(work.device).to(memory_format=torch.channels_last).train()


def _inputs_of_blocks(model: nn.Module, work: Workload) -> dict[nn.Module, torch.Size]:
    """Return the shape of what goes into each block."""
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        shapes[module] = arguments[0].shape

    rows = list(model.features)[1:-1]  # type: ignore[arg-type]
    handles = [block.register_forward_pre_hook(note) for row in rows for block in row]
    with torch.no_grad():
        model(torch.zeros(work.batch_size, 3, *work.image_shape, device=work.device))
    for handle in handles:
        handle.remove()
    return shapes


def _block_step(block: nn.Module, shape: torch.Size, work: Workload) -> Callable[[], None]:
    source = torch.randn(shape, device=work.device).to(memory_format=torch.channels_last).requires_grad_()
    with torch.no_grad():
        gradient = torch.randn_like(block(source))

    def step() -> None:
        with torch.autocast(torch.device(work.device).type, torch.bfloat16, work.bf16):
            output = block(source)
        output.backward(gradient.to(output.dtype))
        block.zero_grad(set_to_none=True)
        source.grad = None

    return step


def _time(step: Callable[[], None], work: Workload) -> float:
    """Return the median seconds of a step."""
    seconds = []
    for number in range(-2, work.repeats):
        started = _now(work)
        step()
        if number >= 0:
            seconds.append(_now(work) - started)
    return statistics.median(seconds)


def _now(work: Workload) -> float:
    if work.device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
