"""The sets of `torchvision.datasets` that are for classification or segmentation, and what differs between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets.prepare.mask_classes import MaskClasses
from datasets.transforms.formats import IGNORED

_BY_FLAG: Mapping[str, Mapping[str, object]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[str, Mapping[str, object]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[str, Mapping[str, object]] = {split: {"split": split} for split in ("train", "val", "test")}
_ONE: Mapping[str, Mapping[str, object]] = {"train": {}}
_TRIMAP = MaskClasses(("background", "pet"), {1: 1, 2: 0, 3: IGNORED})
_VOC = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class TorchvisionSample(NamedTuple):
    """What a set says of one of its images."""

    file: str
    """its path; empty where the set keeps pixels in arrays"""
    label: int
    mask: str = ""
    """its mask's path, where it has one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchvisionSet:
    """How one set is asked for, and where it differs from what most of them do."""

    splits: Mapping[str, Mapping[str, object]]
    """Our split -> the arguments that mean it. Where there is no `val`, images of `train` are held out."""
    variant: tuple[str, str] = ("", "")
    """The argument that `--variant` sets, and what it is without; empty: the set has none."""
    list_samples: Callable[[Any], Iterator[TorchvisionSample]] | None = None
    """The set's samples, where it opens files without a `loader` that could be asked for their paths."""
    masks: MaskClasses | None = None
    """What the pixels of its masks mean; None: it has none."""
    only_masks: bool = False
    """It has no labels."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Arguments that are always given."""


def _pets(data: Any) -> Iterator[TorchvisionSample]:
    for image, label, mask in zip(data._images, data._labels, data._segs, strict=True):
        yield TorchvisionSample(str(image), label, str(mask))


def _voc(data: Any) -> Iterator[TorchvisionSample]:
    for image, mask in zip(data.images, data.masks, strict=True):
        yield TorchvisionSample(image, -1, mask)


def _signs(data: Any) -> Iterator[TorchvisionSample]:
    for image, label in data._samples:
        yield TorchvisionSample(image, label)


SETS = {
    "CIFAR10": TorchvisionSet(splits=_BY_FLAG),
    "CIFAR100": TorchvisionSet(splits=_BY_FLAG),
    "Caltech101": TorchvisionSet(splits=_ONE),
    "Caltech256": TorchvisionSet(splits=_ONE),
    "Country211": TorchvisionSet(splits={**_THREE, "val": {"split": "valid"}}),
    "DTD": TorchvisionSet(splits=_THREE),
    "EMNIST": TorchvisionSet(splits=_BY_FLAG, variant=("split", "balanced")),
    "EuroSAT": TorchvisionSet(splits=_ONE),
    "FER2013": TorchvisionSet(splits=_TWO),
    "FGVCAircraft": TorchvisionSet(splits=_THREE, variant=("annotation_level", "variant")),
    "FashionMNIST": TorchvisionSet(splits=_BY_FLAG),
    "Flowers102": TorchvisionSet(splits=_THREE),
    "Food101": TorchvisionSet(splits=_TWO),
    "GTSRB": TorchvisionSet(splits=_TWO, list_samples=_signs),
    "Imagenette": TorchvisionSet(
        splits={split: {"split": split} for split in ("train", "val")}, variant=("size", "full")
    ),
    "KMNIST": TorchvisionSet(splits=_BY_FLAG),
    "MNIST": TorchvisionSet(splits=_BY_FLAG),
    "OxfordIIITPet": TorchvisionSet(
        splits={"train": {"split": "trainval"}, "test": {"split": "test"}}, list_samples=_pets, masks=_TRIMAP
    ),
    "PCAM": TorchvisionSet(splits=_THREE),
    "Places365": TorchvisionSet(
        splits={"train": {"split": "train-standard"}, "val": {"split": "val"}}, fixed={"small": True}
    ),
    "QMNIST": TorchvisionSet(splits=_BY_FLAG),
    "RenderedSST2": TorchvisionSet(splits=_THREE),
    "STL10": TorchvisionSet(splits=_TWO),
    "SUN397": TorchvisionSet(splits=_ONE),
    "SVHN": TorchvisionSet(splits=_TWO),
    "SEMEION": TorchvisionSet(splits=_ONE),
    "StanfordCars": TorchvisionSet(splits=_TWO),
    "USPS": TorchvisionSet(splits=_BY_FLAG),
    "VOCSegmentation": TorchvisionSet(
        splits={split: {"image_set": split} for split in ("train", "val")},
        variant=("year", "2012"),
        list_samples=_voc,
        masks=MaskClasses(_VOC, {**{value: value for value in range(len(_VOC))}, 255: IGNORED}),
        only_masks=True,
    ),
}
"""Name in `torchvision.datasets` -> what differs."""


def build_set(name: str, root: Path, split: str, *, variant: str, download: bool) -> Any:
    """Make torchvision's dataset for one split; one that reads files returns their paths in place of images.

    Raises:
        Exception: what torchvision raises.
    """
    import torchvision  # brings PyTorch in, which takes seconds

    kind, own = getattr(torchvision.datasets, name), SETS[name]
    taken = inspect.signature(kind).parameters
    options: dict[str, object] = {**own.fixed, **own.splits[split]}
    if own.variant[0]:
        options[own.variant[0]] = variant or own.variant[1]
    if "loader" in taken:
        options["loader"] = str
    if "download" in taken:
        options["download"] = download
    return kind(str(root), **options)


def samples_of(name: str, data: Any) -> Iterator[TorchvisionSample]:
    """Yield what a split's dataset says of its images, in its order; one whose label is not told is left out."""
    if (list_samples := SETS[name].list_samples) is not None:
        yield from list_samples(data)
        return
    for index in range(len(data)):
        image, label = data[index]
        if label is not None:
            yield TorchvisionSample(image if isinstance(image, str) else getattr(image, "filename", ""), int(label))


def class_names_of(data: Any, labels: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a dataset's classes: their numbers, where it has none."""
    names = getattr(data, "classes", None) or getattr(data, "categories", None) or range(max(labels) + 1)
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)
