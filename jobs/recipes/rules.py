"""The rules of the generic recipes: data and machine -> model, image sizes, length, batch, rate, each with its reason.

Each rule is a property of `Rules` and depends on nothing else than its fields. They are starting points, not optima.
docs/recipes.md has them as a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from jobs.recipes.facts import Facts
from model.pretrained import LITE0
from model.tables import Block

T_co = TypeVar("T_co", covariant=True)

Task = Literal["classification", "segmentation", "multilabel", "regression"]
Loss = Literal["cross-entropy", "cross-entropy and Dice", "bce", "asymmetric", "mse"]
Span = tuple[float, float]
"""A value in the first and in the last stage, or the smallest and the largest one."""


class Choice(NamedTuple, Generic[T_co]):
    """What a rule chose, and why."""

    value: T_co
    reason: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """Image sizes of the stages, in pixels: short sides."""

    first: int
    last: int
    multiple: int
    stretch: float = 1.0
    """Long side / short side."""

    @property
    def num_stages(self) -> int:
        """Number of stages: up to four, each of another size."""
        return min(4, (self.last - self.first) // self.multiple + 1)

    @property
    def mean_pixels(self) -> float:
        """Pixels of an image in the mean over the stages, which are equally long."""
        steps = max(1, self.num_stages - 1)
        sides = [self.first + (self.last - self.first) * index / steps for index in range(self.num_stages)]
        return self.stretch * sum(side * side for side in sides) / len(sides)


class Network(NamedTuple):
    """A model: its name, and rows that replace its own where there are any."""

    name: str
    rows: tuple[Block, ...] = ()


class Workers(NamedTuple):
    """The training processes, the CPU cores of each, and the lanes of the sample order."""

    number: int
    cpus: int
    lanes: int


class Augmentation(NamedTuple):
    """What is shown of an image, at any size."""

    crop_area: Span
    """Smallest and largest share of its area."""
    flip: bool


class Regularization(NamedTuple):
    """What grows with the image size."""

    randaugment: Span = (0.0, 0.0)
    mixup: Span = (0.0, 0.0)
    dropout: Span = (0.0, 0.0)


SMALL_32 = (
    Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
    Block("Fused-MBConv", expansion=4, kernel=3, stride=2, channels=32, layers=2),
    Block("MBConv", expansion=4, kernel=3, stride=2, channels=80, layers=2, se=0.25),
)
"""For images below 64 px: a total stride of 8."""
SMALL_64 = (
    Block("Fused-MBConv", expansion=1, kernel=3, stride=1, channels=16, layers=1),
    Block("Fused-MBConv", expansion=3, kernel=3, stride=2, channels=32, layers=1),
    Block("Fused-MBConv", expansion=3, kernel=3, stride=2, channels=48, layers=1),
    Block("MBConv", expansion=4, kernel=3, stride=2, channels=80, layers=2, se=0.25),
)
"""For images from 64 to below 96 px: a total stride of 16."""
CPU_SIZE = 128
"""Last image size on CPUs, in pixels, unless images are few."""
GPU_SIZES = ((40, 384), (12, 300), (0, 224))
"""Memory of a GPU from which on (GB) -> the largest image size, in pixels."""
CPU_PIXELS = {  # (segmentation, fine-tuning): by the measured speed of the models that are chosen
    (False, False): 160e6,
    (False, True): 100e6,
    (True, False): 110e6,
    (True, True): 80e6,
}
"""Pixels that a CPU core computes on in five to nine minutes, forward and backward."""
USUAL_STRETCH = 4 / 3
"""Long side / short side up to which these sizes are of the short side: longer images get no more pixels than that."""
GPU_PIXELS = 100e9
"""Pixels that a GPU is given, all epochs together."""
EPOCHS = {(False, False): (10, 60), (False, True): (4, 20), (True, False): (15, 80), (True, True): (10, 40)}
"""(segmentation, fine-tuning) -> fewest and most epochs; three times as many on GPUs."""
USED = {(False, False): 20_000, (False, True): 6_000, (True, False): 12_000, (True, True): 8_000}
"""(segmentation, fine-tuning) -> images, counted each time that they are used, below which size is worth less."""
BATCHES = ((500_000, 480), (100_000, 192), (20_000, 96), (500, 48), (0, 24))
"""Training images from which on -> batch size."""
MANY_CLASSES = 20
"""Classes from which on an image has few of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The rules, applied to what is known."""

    task: Task
    facts: Facts
    weights: str = ""
    """`model.init_from`, where weights are fine-tuned."""
    model: str = ""
    """`model.name`, where the command gives it."""

    @property
    def masks(self) -> bool:
        """Whether each pixel has a class."""
        return self.task == "segmentation"

    @property
    def devices(self) -> str:
        """What trains, in words."""
        count, what = (self.facts.gpus, "GPU") if self.facts.gpus else (self.facts.cpus, "CPU")
        memory = f" of {self.facts.gpu_memory:.0f} GB" if self.facts.gpus else ""
        return f"{count} {what}{'s' if count > 1 else ''}{memory}"

    @property
    def budget(self) -> float:
        """Pixels to train on, all epochs together."""
        if self.facts.gpus:
            return GPU_PIXELS * self.facts.gpus
        return CPU_PIXELS[self.masks, bool(self.weights)] * min(self.facts.cpus, 16)

    @property
    def sizes(self) -> Choice[Sizes]:
        """Image sizes: the last stage has the images' own size within limits, the first about half of it."""
        side, low = self.facts.short_side, 96 if self.masks or self.weights else 32
        high = next(size for memory, size in GPU_SIZES if self.facts.gpu_memory >= memory)
        if not self.facts.gpus:
            high = self._affordable(high)
        high = max(low, int(high * math.sqrt(min(1.0, USUAL_STRETCH / self.facts.stretch))))
        sizes = self._sizes(min(max(side, low), high))
        if side < low:
            return Choice(sizes, f"images of {side} px are enlarged: {low} px are the least that this is good for")
        if side > high:
            return Choice(sizes, f"images of {side} px; {self.devices} can train {self.facts.samples:,} at {high} px")
        return Choice(sizes, f"images of {side} px; the first stage has about half")

    @property
    def aspect_ratio(self) -> Choice[float]:
        """Width / height of the model's input: that of the images, if they agree."""
        if self.facts.aspect_ratio == 1:
            return Choice(1.0, "images of several shapes, or nearly square: a square distorts none of them much")
        return Choice(self.facts.aspect_ratio, "nine of ten images have it: none is squeezed")

    def _affordable(self, high: int) -> int:
        """Return the largest size from CPU_SIZE on at which CPUs train twice the fewest epochs, and enough images."""
        kind = self.masks, bool(self.weights)
        enough = max(2 * EPOCHS[kind][0] * self.facts.samples, USED[kind])
        sizes = range(high, CPU_SIZE, -32)
        return next((size for size in sizes if enough * self._sizes(size).mean_pixels <= self.budget), CPU_SIZE)

    def _sizes(self, last: int) -> Sizes:
        deep = self.masks or bool(self.weights)  # a total stride of 32
        multiple = 32 if deep else 8 if last < 64 else 16
        last = last // multiple * multiple
        first = max(64 if deep else 16, math.ceil(last / 2 / multiple) * multiple)
        return Sizes(first, last, multiple, self.facts.stretch)

    @property
    def network(self) -> Choice[Network]:
        """The model: the weights' own, or as large as images, data and memory are good for."""
        prefix = "unet_" if self.masks else ""
        if self.model:
            return Choice(Network(self.model), "a flag")
        if self.weights:
            return Choice(Network(prefix + self._of_weights()), f"a model of which {self.weights} has weights")
        last, facts = self.sizes.value.last, self.facts
        if not self.masks and last < 96:
            rows, halvings = (SMALL_32, 3) if last < 64 else (SMALL_64, 4)
            return Choice(Network("efficientnet_v2_tiny", rows), f"images of {last} px are halved {halvings} times")
        if not facts.gpus:
            return Choice(Network(f"{prefix}efficientnet_v2_tiny"), "small enough for CPUs")
        if facts.samples < 50_000 or facts.gpu_memory < 12:
            return Choice(Network(f"{prefix}efficientnet_v2_b0"), f"{facts.samples:,} images, {self.devices}")
        return Choice(
            Network(f"{prefix}efficientnet_v2_s"), f"{facts.samples:,} images are enough for it, {self.devices}"
        )

    def _of_weights(self) -> str:
        large = self.facts.gpu_memory >= 12
        if self.weights == "torchvision":
            return "efficientnet_v2_s" if large else "efficientnet_b0"
        if self.weights == "timm":
            return "efficientnet_v2_s" if large else "efficientnet_v2_b0"
        return LITE0

    @property
    def epochs(self) -> Choice[int]:
        """Length: what the budget of pixels allows, within limits."""
        low, high = EPOCHS[self.masks, bool(self.weights)]
        if self.facts.gpus:
            low, high = 3 * low, 3 * high
        epoch = self.facts.samples * self.sizes.value.mean_pixels
        epochs = min(max(round(self.budget / epoch), low), high)
        return Choice(epochs, f"{self.budget / 1e6:,.0f} megapixels on {self.devices}, but {low} to {high} epochs")

    @property
    def workers(self) -> Choice[Workers]:
        """Training processes: one a GPU, or up to four that share the CPUs."""
        most = self.facts.gpus or min(self.facts.cpus, 4)
        count = min(most, max(1, self.facts.samples // 24))
        lanes = count * math.ceil(12 / count)
        what = self.devices if self.facts.gpus else f"{self.devices}, at most four workers"
        return Choice(Workers(count, max(1, self.facts.cpus // count), lanes), what)

    @property
    def batch_size(self) -> Choice[int]:
        """Batch: larger with more images, a multiple of the lanes."""
        lanes = self.workers.value.lanes
        wanted = next(size for samples, size in BATCHES if self.facts.samples >= samples)
        limit = (480 if self.facts.gpus else 96) // (4 if self.masks else 1)
        # Mixup pairs samples of a lane.
        batch = max(2, min(wanted, limit) // lanes) * lanes
        return Choice(batch, f"{self.facts.samples:,} images; at most {limit}, and a multiple of {lanes} lanes")

    @property
    def learning_rate(self) -> Choice[float]:
        """Peak rate of AdamW: by the square root of the batch."""
        batch = self.batch_size.value
        peak, base = (1e-3, 48) if self.weights else (3e-3, 24) if self.masks else (4e-3, 48)
        if self.facts.gpus and not self.weights:
            peak /= 2  # of larger models
        rate = float(f"{peak * math.sqrt(min(batch, 4 * base) / base):.2g}")
        what = "fine-tuning" if self.weights else "from scratch"
        return Choice(rate, f"{what}: {peak:g} for a batch of {base}, in proportion to the batch's square root")

    @property
    def augmentation(self) -> Choice[Augmentation]:
        """Crops and flips, which no class depends on much; a number may be all that they change."""
        if self.task == "regression":
            cure = "what can't change yours: --data.crop-area 0.4 1, --data.flip True, --ramp.randaugment 0 4"
            return Choice(Augmentation((1.0, 1.0), flip=False), f"a crop, flip or colour can change a number; {cure}")
        return Choice(Augmentation((0.4, 1.0), flip=True), "what an image shows stays the same")

    @property
    def regularization(self) -> Choice[Regularization]:
        """RandAugment, Mixup and dropout: more in longer trainings of larger models."""
        if self.masks:
            return Choice(Regularization(dropout=(0.0, 0.2)), "masks: crops, flips and dropout alone")
        if self.weights:
            found = Choice(Regularization((0.0, 2.0), (0.0, 0.1), (0.1, 0.2)), "a short training from weights")
        elif self.facts.gpus:
            found = Choice(Regularization((0.0, 9.0), (0.0, 0.2), (0.1, 0.3)), "a long training of a larger model")
        else:
            found = Choice(Regularization((0.0, 4.0), (0.0, 0.1), (0.0, 0.1)), "a short training of a small model")
        if self.task == "regression":
            return Choice(Regularization(dropout=found.value.dropout), f"numbers: dropout alone; {found.reason}")
        return found

    @property
    def loss(self) -> Choice[Loss]:
        """The training loss."""
        if self.masks:
            return Choice("cross-entropy and Dice", "masks: Dice weighs small classes as much as large ones")
        if self.task == "classification":
            return Choice("cross-entropy", "one class an image")
        if self.task == "regression":
            return Choice("mse", "numbers, in standard deviations")
        if self.facts.classes < MANY_CLASSES:
            return Choice("bce", f"several of {self.facts.classes} classes an image")
        return Choice("asymmetric", f"{self.facts.classes} classes, of which an image has few")

    @property
    def reasons(self) -> dict[str, str]:
        """Why, by what `jobs.plan` calls each choice."""
        choices: dict[str, Choice[object]] = {
            "model": self.network,
            "image sizes": self.sizes,
            "aspect ratio": self.aspect_ratio,
            "epochs": self.epochs,
            "batch size": self.batch_size,
            "learning rate": self.learning_rate,
            "loss": self.loss,
            "augmentation": self.augmentation,
            "regularization": self.regularization,
            "workers": self.workers,
        }
        return {name: choice.reason for name, choice in choices.items()}
