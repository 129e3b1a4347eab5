"""A set of `torchvision.datasets`, with its own download, checksums and splits."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from datasets.errors import DataError
from datasets.prepare.encode import file_bytes
from datasets.prepare.mask_classes import MaskClasses, numbered_mask
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import VAL_SHARE, check_share, check_unused, groups_of, hold_out, mark_of
from datasets.prepare.torchvision_download import fetch_whole
from datasets.prepare.torchvision_sets import SETS, build_set, class_names_of, samples_of


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchvisionData(Source):
    """A set of torchvision.datasets: downloaded and checked as torchvision does it, in the splits that it has."""

    name: ClassVar[str] = "torchvision"
    places: ClassVar[tuple[str, ...]] = ("download",)

    dataset: Annotated[str, tyro.conf.Positional]
    """Its name there, such as CIFAR10, Flowers102, OxfordIIITPet, VOCSegmentation; docs/data.md lists all."""
    root: Path = Path("data/torchvision")
    """Folder that torchvision's sets lie in, each as torchvision lays it out."""
    download: bool = True
    """Download the set if it isn't there."""
    masks: bool = False
    """Learn its masks in place of its labels: OxfordIIITPet's (VOCSegmentation has nothing else)."""
    variant: str = ""
    """Which one, where there are several: EMNIST's split (balanced, letters, ...), Imagenette's size, FGVCAircraft's
    level, VOCSegmentation's year."""
    split: Literal["", "train", "val", "test"] = ""
    """Write this split alone."""
    val_share: float = VAL_SHARE
    """Share of each class held out for validation if the set has no split for it; with masks, of all."""

    def __post_init__(self) -> None:
        check_share(self.val_share)
        if self.dataset not in SETS:
            near = difflib.get_close_matches(self.dataset.lower(), [name.lower() for name in SETS], 1)
            meant = [name for name in SETS if name.lower() in near] or [*SETS]
            raise ValueError(f"dataset is {self.dataset!r}; did you mean {', '.join(meant)}?")
        own = SETS[self.dataset]
        if self.masks and own.masks is None:
            raise ValueError(f"--masks: {self.dataset} has none")
        if self.variant and not own.variant[0]:
            raise ValueError(f"--variant is {self.variant!r}, and {self.dataset} has only one")
        if self.split not in ("", *own.splits):
            raise ValueError(f"--split is {self.split!r}, and {self.dataset} has {' and '.join(own.splits)} alone")

    @property
    def mask_classes(self) -> MaskClasses | None:
        """What the pixels of the set's masks mean, where they are learned."""
        own = SETS[self.dataset]
        return own.masks if self.masks or own.only_masks else None

    def plan(self) -> Plan:
        """List the set's images, after downloading it where it isn't there.

        Raises:
            DataError: it can't be downloaded, or what is there can't be read.
        """
        self._make_available()
        splits = {split: tuple(self._items(split)) for split in self._asked}
        notes: tuple[str, ...] = ()
        if "val" not in splits and not self.split:
            notes = (f"val is {self.val_share:.0%} of the training images: {self.dataset} has no split for it",)
            splits |= hold_out(splits["train"], self.val_share, groups_of(splits["train"]), self.dataset)
        else:
            check_unused(self.val_share, self.dataset)
        meaning = self.mask_classes
        labels = [item.label for items in splits.values() for item in items]
        return Plan(
            classes=meaning.names if meaning else class_names_of(self._set(self._asked[0]), labels),
            splits={split: splits[split] for split in ("train", "val", "test") if split in splits},
            kind="segmentation" if meaning else "classification",
            is_one_split=bool(self.split),
            is_listed=True,
            notes=notes,
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one image: its file's bytes as they are, or a PNG of what the set keeps in an array.

        Raises:
            DataError: no image that can be read.
        """
        kind, _, name = item.name.partition(":")
        if not name:
            try:
                return file_bytes(self.root / item.name)
            except (ValueError, OSError) as error:
                raise DataError(f"{self.root / item.name}: {error}") from None
        stream = io.BytesIO()
        self._set(kind)[int(name)][0].save(stream, "PNG")
        return "png", stream.getvalue()

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return one mask as a grey PNG of class numbers, 255 for pixels that are ignored.

        Raises:
            DataError: a mask that can't be read, of another size than its image, or with pixels of no class.
        """
        assert self.mask_classes is not None
        path = self.root / item.mask
        try:
            return numbered_mask(self.mask_classes, path.read_bytes(), image, item.name)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: {error}") from None

    @property
    def _asked(self) -> tuple[str, ...]:
        return (self.split,) if self.split else tuple(SETS[self.dataset].splits)

    def _make_available(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise DataError(f"--root {self.root}: it is a file, and a folder is needed")
        try:
            for split in self._asked:
                self._set(split)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()).partition(" You can use")[0].rstrip(".")
            if not self.download:
                raise DataError(f"torchvision {self.dataset}: {reason} in {self.root}; name the folder that it is in "
                                "with --root, or leave out --no-download") from None  # fmt: skip
        except ValueError as error:
            raise DataError(f"torchvision {self.dataset}: {' '.join(str(error).split())}") from None
        else:
            return
        fetch_whole(self.dataset, self.root, self._download, is_there=self._is_there)
        for split in self._asked:
            self._set(split)

    def _is_there(self) -> bool:
        try:
            return all(self._set(split) is not None for split in self._asked)
        except (RuntimeError, OSError):
            return False

    def _download(self, root: Path) -> None:
        for split in self._asked:
            build_set(self.dataset, root, split, variant=self.variant, download=True)

    def _set(self, split: str) -> Any:
        return _built(self.dataset, self.root, split, self.variant)

    def _items(self, split: str) -> Iterator[Item]:
        meaning = self.mask_classes
        for index, sample in enumerate(samples_of(self.dataset, self._set(split))):
            if not sample.file:
                yield Item(f"{split}:{index}", sample.label)
                continue
            name, mark = self._below(sample.file), mark_of(Path(sample.file))
            if meaning is None:
                yield Item(name, sample.label, mark)
            else:
                mark = f"{mark} {mark_of(Path(sample.mask))} {meaning.digest}"
                yield Item(name, -1, mark, mask=self._below(sample.mask))

    def _below(self, path: str) -> str:
        return str(Path(path).relative_to(self.root))


@lru_cache(maxsize=3)
def _built(dataset: str, root: Path, split: str, variant: str) -> Any:
    """Make a set once for all its images; processes that are forked from this one share it."""
    return build_set(dataset, root, split, variant=variant, download=False)
