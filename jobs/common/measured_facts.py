"""Measures what a generic recipe follows from: the prepared data, by its manifest and some images, and this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.config import MAX_RATIO
from datasets.cpus import usable_cpus
from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.loading.reader import SampleReader
from datasets.shards.manifest import DatasetManifest
from datasets.shards.resolve import load_manifest
from datasets.transforms.bands import any_header
from datasets.transforms.formats import RGB
from datasets.transforms.shape import Shape
from jobs.common.parsing import UsageError
from jobs.recipes.generic import FITTING, TASKS

FactValues = dict[str, float | str]
"""Facts by their names."""
LOOKED_AT = 48
"""Images whose size is read, spread over the data."""
FEWEST = 24
"""Training images without which there isn't even a batch."""
_NEAR, _CLEARLY = 1.1, 1.2
"""Factors of the aspect ratio: within which images count as alike, and from which on they are not nearly square."""
ASSUMED_GPU_GB = 16.0
"""Memory of a GPU that isn't in this machine."""


def split_flags(data: str) -> list[str]:
    """Return the two flags that --data stands for; none if it is empty.

    Raises:
        UsageError: it is a folder, but not one of prepared data; with the cure.
    """
    if not data:
        return []
    data = data.rstrip("/") or "/"
    if not is_remote(data):
        _check_prepared(Path(data))
    return ["--data.train", f"{data}/train", "--data.val", f"{data}/val"]


def data_facts(recipe: str, train: str, *, shapes: bool) -> FactValues:
    """Return how many images and classes the training data has, what their pixels are, and, if asked for, the images'
    short side and aspect ratio.

    Raises:
        UsageError: the data is not what the recipe is for, or too few.
        DataError: it can't be read.
    """
    manifest = load_manifest(train)
    _check_kind(recipe, manifest, train)
    _check_enough(manifest, train)
    pixels = manifest.pixels or RGB
    found: FactValues = {"samples": manifest.num_samples, "classes": len(manifest.classes)}
    found |= {"pixel_type": pixels.kind, "channels": pixels.channels}
    return found | (_shape_facts(manifest, train) if shapes else {})


def machine_facts(*, gpus: int | None) -> FactValues:
    """Return what this machine has; `gpus` are those that the command asks for, wherever they are."""
    here = _gpus_here()
    count = len(here) if gpus is None else gpus
    memory = min(here, default=ASSUMED_GPU_GB) if count else 0.0
    return {"cpus": usable_cpus(), "gpus": count, "gpu_memory": round(memory, 1)}


def _check_prepared(folder: Path) -> None:
    has = {split: any((folder / split).glob("*.tar*")) for split in ("train", "val")}
    if all(has.values()):
        return
    if not folder.is_dir():
        raise UsageError(f"--data is {folder}: there is no such folder")
    two = "or give --data.train and --data.val"
    if any(folder.glob("*.tar*")):
        raise UsageError(f"--data is {folder}: that is one split; name the folder above it, {two}")
    if has["train"]:
        raise UsageError(f"--data is {folder}: it has no val; prepare the images again, which holds some out, {two}")
    out = f"data/{folder.name}-shards"
    raise UsageError(
        f"--data is {folder}: it holds no shards; prepare your images first: `python -m jobs.prepare image-folder "
        f"{folder} --out {out}` (with masks: masks; by a table: csv), then --data {out}"
    )


def _check_kind(recipe: str, manifest: DatasetManifest, train: str) -> None:
    if manifest.kind != TASKS[recipe]:
        cure = FITTING.get(manifest.kind, "a recipe of your own, with that task")
        raise UsageError(f"{train} is for {manifest.kind}, and {recipe} is for {TASKS[recipe]}: take {cure}")


def _check_enough(manifest: DatasetManifest, train: str) -> None:
    if manifest.num_samples < FEWEST:
        raise UsageError(f"{train} has {manifest.num_samples} images: a training needs at least {FEWEST}; prepare more")
    if manifest.kind != "classification":
        return
    if len(manifest.classes) < 2:
        raise UsageError(f"{train} has one class, {', '.join(manifest.classes)}: there is nothing to tell apart")
    for name, count in zip(manifest.classes, manifest.class_counts, strict=False):
        if count < 2:
            raise UsageError(
                f"{train}: class {name!r} has {count or 'no'} training image{'' if count else 's'}, and 2 are the "
                "least: add images of it, or leave the class out, and prepare again"
            )


def _shape_facts(manifest: DatasetManifest, train: str) -> FactValues:
    """Return the short side in pixels that nine of ten of some images have at least, and the aspect ratio that they
    have in common.
    """
    if any(shard.packed for shard in manifest.shards):
        raise DataError(f"{train}: compressed shards aren't looked into; give --facts short-side=PIXELS")
    last = manifest.num_samples - 1
    numbers = sorted({number * last // (LOOKED_AT - 1) for number in range(LOOKED_AT)})
    shapes: list[Shape] = []
    for sample in SampleReader(manifest).read_each(numbers):
        try:
            header = any_header(sample.data)
        except ValueError:  # a corrupt one: training replaces and counts it
            continue
        shapes.append((header.height, header.width))
    if not shapes:
        raise DataError(f"{train}: none of {len(numbers)} images could be read; `python -m jobs.index` looks closer")
    sides = sorted(min(shape) for shape in shapes)
    return {"short_side": sides[len(sides) // 10], "aspect_ratio": common_ratio(shapes)}


def common_ratio(shapes: Sequence[Shape]) -> float:
    """Return the median width / height of images if nine of ten have it within a tenth, else 1; also if it is nearly 1.

    Photographs that are wide and others that are high have no such ratio: the one would distort the others more than a
    square does.
    """
    ratios = sorted(width / height for height, width in shapes)
    middle = min(max(ratios[len(ratios) // 2], 1 / MAX_RATIO), MAX_RATIO)
    alike = sum(1 / _NEAR <= ratio / middle <= _NEAR for ratio in ratios)
    is_square = max(middle, 1 / middle) < _CLEARLY
    return 1.0 if is_square or alike < 0.9 * len(ratios) else round(middle, 3)


def _gpus_here() -> list[float]:
    """Return the memory of each GPU in GB. PyTorch, which takes seconds, is asked only where there is a driver."""
    if not Path("/dev/nvidia0").exists():
        return []
    import torch

    count = torch.cuda.device_count()
    return [torch.cuda.get_device_properties(index).total_memory / 1e9 for index in range(count)]
