"""The size of the data for a plan: that of the recipe, or given numbers."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.checks import check_pixels
from datasets.errors import DataError
from datasets.loading.class_sampling import sampling_lines
from datasets.loading.sample_order import sample_order
from datasets.prepare.report import report_of
from datasets.shards.resolve import load_manifest
from infra.storage.failures import reworded
from jobs.recipes.imagenet import IMAGENET_SHARDS
from pipeline.config import TrainConfig
from pipeline.run.class_weights import weight_lines
from pipeline.run.preflight import with_numbers_of_data


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFlags:
    """Flags of the plan itself."""

    json: bool = False
    """Print JSON instead of a table."""
    samples: int = 0
    """Number of training images to assume, if the data can't be read from here; 0: read the data's manifest."""
    bytes_per_sample: int = 0
    """With `samples`: average size of an image file to assume, in bytes."""

    def __post_init__(self) -> None:
        for name in ("samples", "bytes_per_sample"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be 0 or more")


@dataclass(frozen=True, slots=True)
class DataSize:
    """How much data there is."""

    samples: int
    samples_per_epoch: int
    bytes_per_sample: float
    source: str
    classes: int = 1000
    """ImageNet's, where they aren't known."""
    report: tuple[str, ...] = ()
    """Lines of the data report that `jobs.prepare` made, and on how often and with which weights classes are used."""
    copies: tuple[int, ...] = ()
    """Short sides of its smaller copies, in pixels."""


IMAGENET = (1_281_167, 147_897_477_120)
"""Training images of ImageNet-1k and the bytes of their archive, ILSVRC2012_img_train.tar."""


def data_size(config: TrainConfig, flags: PlanFlags) -> DataSize:
    """Return what the manifest says, what the flags assume, or ImageNet's numbers for an ImageNet recipe.

    Raises:
        DataError: the data can't be read and nothing was assumed, or it holds other pixels than the config says.
    """
    lanes = config.data.num_lanes
    if flags.samples:
        if flags.samples < lanes:
            raise DataError(f"--samples is {flags.samples}: fewer than data.num_lanes={lanes}; use fewer lanes")
        return DataSize(flags.samples, flags.samples // lanes * lanes, flags.bytes_per_sample, "assumed")
    if config.data.train == IMAGENET_SHARDS:
        samples, size = IMAGENET
        return DataSize(samples, samples // lanes * lanes, size / samples, "ImageNet-1k")
    try:
        manifest = load_manifest(config.data.train, weights=config.data.train_weights)
    except DataError as error:
        raise reworded(error, f"{error} (or plan for --samples N)") from error
    check_pixels("data.train", config.data, manifest)
    order = sample_order(config.data, manifest, seed=config.seed)
    used = int(manifest.shard_counts.sum())  # of a mix an epoch takes more or fewer than there are
    num_bytes = sum(shard.num_bytes * shard.weight for shard in manifest.shards)
    task = with_numbers_of_data(config.task, config.data, manifest)
    report = (
        *report_of(manifest),
        *sampling_lines(config.data, manifest, seed=config.seed),
        *weight_lines(task, manifest.classes),
    )
    classes = len(manifest.classes)
    return DataSize(
        used, order.samples_per_epoch, num_bytes / used, config.data.train, classes, report, manifest.copies
    )
