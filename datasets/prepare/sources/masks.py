"""Images with masks beside them, for segmentation: in a folder of their own, or in the images' with another name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from datasets.errors import DataError
from datasets.prepare.encode import file_bytes
from datasets.prepare.layout import LeftOut, check_folder, image_files
from datasets.prepare.mask_classes import MaskClasses, numbered_mask, remembered_mask_classes
from datasets.prepare.source import Item, Plan, Source
from datasets.prepare.split import VAL_SHARE, check_share, check_unused, hold_out, mark_of

_LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
_EXTENSIONS = (*_LOSSLESS, *(extension.upper() for extension in _LOSSLESS))
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks(Source):
    """Images and their masks: IMAGES/A/B.jpg with MASKS/A/B.png, or with B.png beside it, or B_mask.png."""

    name: ClassVar[str] = "masks"

    images: Annotated[Path, tyro.conf.Positional]
    """Folder of the training images, or of all that there are."""
    classes: str
    """Class names, separated by commas, of the pixels with the values 0, 1, ...; or a file with a name a line, or with
    RED GREEN BLUE NAME a line for coloured masks."""
    masks: Path | None = None
    """Folder of their masks, with the same sub-folders and names; without it they are beside the images."""
    mask_suffix: str = ""
    """What the name of a mask has behind the image's, as in `_mask` for a.jpg and a_mask.png."""
    val_images: Path | None = None
    """Folder of the validation images; without it, --val-share of the training ones."""
    val_masks: Path | None = None
    """Folder of the validation masks."""
    test_images: Path | None = None
    """Folder of the test images, if there are any."""
    test_masks: Path | None = None
    """Folder of the test masks."""
    ignore: tuple[str, ...] = ()
    """Values of pixels that are neither trained nor evaluated, or names of classes that are none, such as `void`."""
    binary: bool = False
    """The masks are black and white, or of greys between: from 128 on the second class, below it the first."""
    skip_unmasked: bool = False
    """Leave out images without a mask, and count them in the data report, instead of ending with an error."""
    val_share: float = VAL_SHARE
    """Share of the images of each sub-folder held out for validation if there is no --val-images; the file names decide
    which."""
    test_share: float = 0.0
    """Share of the images of each sub-folder held out for the test split if there is no --test-images, likewise; 0: no
    test split."""

    def __post_init__(self) -> None:
        check_share(self.val_share)
        if not 0 <= self.test_share < 1 - self.val_share:
            raise ValueError(
                f"--test-share is {self.test_share}; it must be 0 (no test split) or more, and with --val-share below 1"
            )
        if self.test_share and (self.test_images is not None or self.val_images is not None):
            raise ValueError(
                f"--test-share is {self.test_share}: a share of all images; leave out --test-images and --val-images"
            )
        for split in ("val", "test"):
            images, masks = getattr(self, f"{split}_images"), getattr(self, f"{split}_masks")
            if masks is not None and images is None:
                raise ValueError(f"--{split}-masks is {masks}: give --{split}-images too")
            if images is not None and (masks is None) != (self.masks is None):
                raise ValueError(f"--{split}-masks and --masks: give both, or none where masks are beside the images")

    @property
    def walked(self) -> tuple[Path, ...]:
        """All folders that are named."""
        named = (self.images, self.masks, self.val_images, self.val_masks, self.test_images, self.test_masks)
        return tuple(folder for folder in named if folder is not None)

    @property
    def mask_classes(self) -> MaskClasses:
        """What the pixels mean."""
        return remembered_mask_classes(self.classes, self.ignore, binary=self.binary)

    def plan(self) -> Plan:
        """List the images that have masks.

        Raises:
            DataError: no such folder, classes that can't be understood, or images without a mask.
        """
        table, left_out, notes = self.mask_classes, LeftOut(), list[str]()
        splits = {
            split: self._items(split, table, left_out) for split in ("train", "val", "test") if self._folder(split)
        }
        if "val" not in splits:
            splits = self._held_out(splits["train"]) | {split: splits[split] for split in splits if split != "train"}
            shares = [f"val is {self.val_share:.0%}"] + [f"test {self.test_share:.0%}"] * bool(self.test_share)
            notes.append(f"{', '.join(shares)} of each folder of {self.images}: there is no --val-images")
        else:
            check_unused(self.val_share, self.images)
        return Plan(
            classes=table.names,
            splits=splits,
            kind="segmentation",
            is_listed=True,
            left_out=left_out.reasons,
            notes=tuple(notes),
        )

    def encode(self, split: str, item: Item) -> tuple[str, bytes]:
        """Return one image's bytes as they are.

        Raises:
            DataError: no image that can be read.
        """
        try:
            return file_bytes(self._image(split, item))
        except ValueError as error:
            raise DataError(f"{item.name}: {error}") from error

    def mask(self, split: str, item: Item, image: bytes) -> bytes:
        """Return one mask as a grey PNG of class numbers, 255 for pixels that are ignored.

        Raises:
            DataError: a mask that can't be read, of another size than its image, or with pixels of no class.
        """
        mask = self._mask(self._image(split, item), split)
        assert mask is not None, "the plan has images with masks alone"
        try:
            return numbered_mask(self.mask_classes, mask.read_bytes(), image, item.name)
        except (ValueError, OSError) as error:
            raise DataError(f"{mask}: {error}") from error

    def _held_out(self, everything: tuple[Item, ...]) -> dict[str, tuple[Item, ...]]:
        """Return the splits of one folder's images. Those of the test split are chosen first, so a larger share of them
        takes the images that validation had."""
        if not self.test_share:
            return hold_out(everything, self.val_share, _sub_folder, self.images)
        parts = hold_out(everything, self.test_share, _sub_folder, self.images)
        share = self.val_share / (1 - self.test_share)
        return hold_out(parts["train"], share, _sub_folder, self.images) | {"test": parts["val"]}

    def _folder(self, split: str) -> Path | None:
        """Return the folder of a split's images; validation images that were held out are in the training folder."""
        own: Path | None = self.images if split == "train" else getattr(self, f"{split}_images")
        return own

    def _image(self, split: str, item: Item) -> Path:
        return (self._folder(split) or self.images) / item.name

    def _mask(self, image: Path, split: str) -> Path | None:
        """Return the mask of an image, if it has one."""
        return next((place for place in self._mask_places(image, split) if place.is_file()), None)

    def _mask_places(self, image: Path, split: str) -> list[Path]:
        """Return the files that an image's mask can be, the usual one first."""
        folder = self._folder(split) or self.images
        masks = self.masks if folder == self.images else getattr(self, f"{split}_masks")
        place = (masks or folder) / image.relative_to(folder)
        names = (place.with_name(f"{image.stem}{self.mask_suffix}{extension}") for extension in _EXTENSIONS)
        return [name for name in names if name != image]

    def _items(self, split: str, table: MaskClasses, left_out: LeftOut) -> tuple[Item, ...]:
        folder = self._folder(split)
        assert folder is not None
        for needed in (folder, self.masks if split == "train" else getattr(self, f"{split}_masks")):
            if needed is not None:
                check_folder(needed)
        found = list(image_files(folder, folder, left_out))
        images = {file.with_suffix("") for file in found if file.suffix not in _EXTENSIONS}
        files = [file for file in found if not self._is_mask(file, images)]
        if not files:
            there = "; ".join(f"{why}, such as {one}" for why, (_, one) in left_out.reasons.items())
            raise DataError(f"{folder}: no images lie there{f' ({there})' if there else ''}; name their folder")
        pairs = [(file, self._mask(file, split)) for file in files]
        if unmasked := [file for file, mask in pairs if mask is None]:
            if not self.skip_unmasked:
                raise DataError(self._unmasked(unmasked, split, len(files)))
            left_out.add("without a mask", str(unmasked[0].relative_to(folder)), len(unmasked))
        return tuple(
            Item(str(file.relative_to(folder)), -1, f"{mark_of(file)} {mark_of(mask)} {table.digest}")
            for file, mask in pairs
            if mask is not None
        )

    def _is_mask(self, file: Path, images: set[Path]) -> bool:
        """Say whether a file in a folder of images and masks is a mask; `images` can be none, without extension."""
        if self.masks is not None:
            return False
        if self.mask_suffix:
            return file.stem.endswith(self.mask_suffix)
        return file.suffix in _EXTENSIONS and file.with_suffix("") in images

    def _unmasked(self, files: list[Path], split: str, total: int) -> str:
        folder = self._folder(split) or self.images
        shown = ", ".join(str(file.relative_to(folder)) for file in files[:_MOST_NAMED])
        more = f" and {len(files) - _MOST_NAMED:,} more" if len(files) > _MOST_NAMED else ""
        wanted = self._mask_places(files[0], split)[0]
        lossy = next((place for end in (".jpg", ".jpeg") if (place := wanted.with_suffix(end)).is_file()), files[0])
        found = f"{folder}: {len(files):,} of {total:,} images have no mask: {shown}{more}"
        if lossy != files[0]:
            return f"{found}; {lossy} is there, but JPEG changes the values of pixels: write masks as PNG"
        elsewhere = "" if self.masks or self.mask_suffix else ", name their folder with --masks"
        return (
            f"{found}; the first one's would be {wanted}; add them{elsewhere}, or leave such images out with "
            "--skip-unmasked"
        )


def _sub_folder(item: Item) -> str:
    return str(Path(item.name).parent)
