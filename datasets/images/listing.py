"""Images wherever they lie: files, folders of them, tars and tables, local or in S3; listed without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.tables import open_table
from datasets.files.urls import folder_beside, folder_of, is_packed, is_shard, join, name_of
from datasets.prepare.layout import ARRAY_BESIDE, LeftOut, image_files, is_hidden
from datasets.shards.resolve import expand_files
from datasets.shards.tar_index import image_members
from datasets.transforms.formats import IMAGE_EXTENSIONS, arrays_beside_images, is_image_name

TABLE_SUFFIX = ".csv"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image that is not read yet."""

    name: str
    """What messages and results call it: its path or URL; in a tar, the tar's with `:KEY.EXTENSION` behind it."""
    url: str
    """The file that it lies in: a local path or s3://BUCKET/KEY."""
    offset: int = 0
    size: int = -1
    """Bytes from `offset` on; -1: the whole file."""
    label: str = ""
    """Class name or number, or a mask's file, as it is said where the image was found; empty: nothing is said."""

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: it can't be read.
        """
        if is_remote(self.url):
            return s3.read(self.url, start=self.offset, length=None if self.size < 0 else self.size)
        try:
            with Path(self.url).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.name}: it can't be read ({error.strerror})") from None
        if 0 <= self.size != len(data):
            raise DataError(f"{self.url}: cut short within {self.name}")
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """Which columns of a CSV table say what."""

    path: str = "path"
    """The image: a path relative to the table's folder, an absolute one, or s3://BUCKET/KEY."""
    label: str = "label"
    """Its class, by name or number; for segmentation the file of its mask; multi-label: its classes, may be none."""
    separator: str = ""
    """Multi-label: text between the classes of an image."""


def find_images(place: str, left_out: LeftOut, columns: TableColumns | None = None) -> Iterator[ImageFile]:
    """Yield the images of a place, in order of their names or as a tar or table lists them.

    A place is an image file, a folder (with all folders in it), a tar, a brace list of tars, or a table
    `NAME.csv`; each is a local path or `s3://`. Of a folder that holds tars, their images are taken, not itself's.
    What counts as an image is what `jobs.prepare` takes for one. The label is that of a tar or table; in a folder it
    is the name of the image's first folder below `place`.

    Args:
        place: where to look.
        left_out: takes the files that are no samples.
        columns: of a table.

    Raises:
        DataError: there is nothing at this place, or what is there can't be read; one line.
    """
    if "://" in place and not is_remote(place):
        raise DataError(f"{place}: only local paths and s3:// can be read; copy it there")
    if place.endswith(TABLE_SUFFIX):
        return _table_rows(place, columns or TableColumns())
    if is_shard(place):
        return _tar_images(expand_files(place))
    if is_remote(place):
        return _remote_images(place.rstrip("/"), left_out)
    if Path(place).is_dir():
        return _local_images(Path(place), left_out)
    if Path(place).is_file():
        return iter([ImageFile(place, place)])
    raise DataError(f"{place}: there is no such file or folder")


def no_images(place: str, left_out: LeftOut) -> DataError:
    """Return the error of a place without images: what else is there, or which names are looked for."""
    there = "; ".join(f"{count} left out: {why}, such as {one}" for why, (count, one) in left_out.reasons.items())
    return DataError(f"{place}: no image files lie there ({there or ', '.join(sorted(IMAGE_EXTENSIONS))})")


def _local_images(folder: Path, left_out: LeftOut) -> Iterator[ImageFile]:
    if any(is_shard(path.name) and not path.name.startswith(".") for path in folder.iterdir()):
        yield from _tar_images(expand_files(str(folder)))
        return
    for path in image_files(folder, folder, left_out):
        first, *rest = path.relative_to(folder).parts
        yield ImageFile(str(path), str(path), label=first if rest else "")


def _remote_images(url: str, left_out: LeftOut) -> Iterator[ImageFile]:
    if is_image_name(name_of(url)):
        yield ImageFile(url, url)
        return
    found = s3.list_below(url)
    if any(is_shard(file.url) and folder_of(file.url) == url for file in found):
        yield from _tar_images(expand_files(url))
        return
    beside = arrays_beside_images(file.url for file in found)
    for file in found:
        below = file.url.removeprefix(f"{url}/")
        first, *rest = below.split("/")
        if any(is_hidden(part) for part in (first, *rest)):
            left_out.add("hidden or system files", below)
        elif file.url in beside:
            left_out.add(ARRAY_BESIDE, below)
        elif not is_image_name(name_of(below)):
            left_out.add(f"not an image: .{name_of(below).rpartition('.')[2].lower()}", below)
        else:
            yield ImageFile(file.url, file.url, size=file.size, label=first if rest else "")


def _tar_images(files: Iterable[RemoteFile]) -> Iterator[ImageFile]:
    for file in files:
        if is_packed(file.url):
            raise DataError(
                f"{file.url}: images are read by their place in a tar, and this one is compressed; unpack it"
            )
        for key, extension, offset, size, label in image_members(file):
            folder = key.partition("/")[0] if "/" in key else ""
            name = f"{file.url}:{key}.{extension}"
            yield ImageFile(name, file.url, offset, size, folder if label == -1 else str(label))


def _table_rows(url: str, columns: TableColumns) -> Iterator[ImageFile]:
    """Yield the rows of a table; paths are checked when the images are read."""
    table, folder = open_table(url), folder_beside(url)
    table.check(columns.path, "--path-column")
    labels = [columns.label] if columns.label in table.columns else []
    for place, cells in table.rows([columns.path, *labels]):
        path, *label = map(str, cells)
        if not path:
            raise DataError(f"{url}: {place}: the column {columns.path!r} is empty; fill it, or remove the row")
        file = join(folder, path)
        yield ImageFile(file, file, label="".join(label))
