"""A source of images: what it plans to write, and the bytes of each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from datasets.prepare.mask_classes import MaskClasses


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be written."""

    name: str
    """Where it comes from, relative to its source; unique in its split. Becomes part of the key."""
    label: int
    """Class number; -1 where the source has several labels an image, or masks. Once the masks are read it is the rarest
    class in the image's mask."""
    mark: str = ""
    """What else identifies its content, such as a file's size: a change is noticed by it."""
    labels: tuple[int, ...] | None = None
    """Multi-label: its class numbers, ascending, each once; may be empty. None: the source has one label an image."""
    targets: tuple[float, ...] | None = None
    """Regression: the numbers to be estimated. None: the source has labels."""
    mask: str = ""
    """Path or URL of its mask, where the source is told it."""
    row: str = ""
    """Where its source says this, as a message names it: `line 7` of a table. No part of what it is."""
    chunk: str = ""
    """What its source reads as a whole: such images are written one after the other. Empty: it is read by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that will be written, before the first image is read."""

    classes: tuple[str, ...]
    """Class names in label order."""
    splits: dict[str, tuple[Item, ...]]
    """Items of `train` and `val`, and of `test` where there is one; of one split alone where that is asked for."""
    kind: str = "classification"
    """What is learned from them: `classification`; `multilabel` with `Item.labels`; `regression` with
    `Item.targets`, whose names `classes` are; `segmentation` with `Source.mask` next to each image."""
    origin: dict[str, Any] = field(default_factory=dict)
    """What the manifest records about where the images come from (licence, package versions, ...)."""
    is_one_split: bool = False
    """One split alone is asked for."""
    is_listed: bool = False
    """The images are somebody's files, which are all decoded before anything is written, as those with masks are."""
    left_out: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Of listed files: reason -> (files that are no samples, one of them)."""
    notes: tuple[str, ...] = ()
    """What a reader of the data report should know of the splits."""


class Source(Protocol):
    """Where images come from: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]
    notice: ClassVar[str] = ""
    """What `jobs.prepare` says first, such as a licence."""
    places: ClassVar[tuple[str, ...]] = ()
    """Options that say where files lie: no part of what the shards are made from."""

    @property
    def walked(self) -> tuple[Path, ...]:
        """Folders whose files are all taken for the source's own, so that no shards may lie in them."""
        return ()

    @property
    def mask_classes(self) -> MaskClasses | None:
        """What the flags say of the pixels of somebody's masks; None: there are no such masks."""
        return None

    def plan(self) -> Plan:
        """List every image with its label; cheap, and equal for equal options and files."""

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return (extension, bytes) of one image: a pure function of options, split and item."""

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return the mask of an image, whose bytes are given, as a grey PNG of class numbers, 255 for ignored pixels.

        Asked for where the plan is for segmentation.

        Raises:
            DataError: a mask that can't be read, of another size than its image, or with pixels of no class.
        """
        raise AssertionError(f"{self.name} has no masks")
