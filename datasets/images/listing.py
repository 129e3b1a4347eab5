"""Images wherever they lie: files, folders of them, tars and tables, local or in S3; listed without reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.tables import Table, is_table, open_table
from datasets.files.urls import folder_beside, folder_of, is_packed, is_shard, join, name_of
from datasets.prepare.layout import ARRAY_BESIDE, LeftOut, image_files, is_hidden
from datasets.prepare.table_labels import NO_LABELS, TableColumns
from datasets.prepare.table_rows import ImageRow, each_row
from datasets.shards.resolve import expand_files
from datasets.shards.tar_index import image_members
from datasets.transforms.formats import IMAGE_EXTENSIONS, arrays_beside_images, is_image_name


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
    labels: tuple[str, ...] = ()
    """What is said of it where it was found: names or numbers of its classes, a mask's file, or NAME=NUMBER of each
    target."""

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


def find_images(place: str, left_out: LeftOut, path_column: str = "path") -> Iterator[ImageFile]:
    """Yield the images of a place, in order of their names or as a tar or table lists them.

    A place is an image file, a folder (with all folders in it), a tar, a brace list of tars, or a table (`is_table`);
    each is a local path or `s3://`. Of a folder that holds tars, their images are taken, not itself's.
    What counts as an image is what `jobs.prepare` takes for one. The label is that of a tar; in a folder it is the name
    of the image's first folder below `place`. A table's labels are not looked at: `table_images` takes those.

    Args:
        place: where to look.
        left_out: takes the files that are no samples.
        path_column: the column of a table that says where its images are.

    Raises:
        DataError: there is nothing at this place, or what is there can't be read; one line.
    """
    if "://" in place and not is_remote(place):
        raise DataError(f"{place}: only local paths and s3:// can be read; copy it there")
    if is_table(place):
        table, columns = open_table(place), TableColumns(path=path_column, split="")
        table.check(path_column, "--path-column")
        return table_images(table, each_row(table, NO_LABELS, columns, otherwise="test"))
    if is_shard(place):
        return _tar_images(expand_files(place))
    if is_remote(place):
        return _remote_images(place.rstrip("/"), left_out)
    if Path(place).is_dir():
        return _local_images(Path(place), left_out)
    if Path(place).is_file():
        return iter([ImageFile(place, place)])
    raise DataError(f"{place}: there is no such file or folder")


def table_images(table: Table, rows: Iterable[ImageRow]) -> Iterator[ImageFile]:
    """Yield the images of a table's rows, whose paths are relative to its folder; looked for when they are read."""
    folder = folder_beside(table.url)
    for row in rows:
        file = join(folder, row.path)
        yield ImageFile(file, file, labels=row.labels)


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
        yield ImageFile(str(path), str(path), labels=(first,) if rest else ())


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
            yield ImageFile(file.url, file.url, size=file.size, labels=(first,) if rest else ())


def _tar_images(files: Iterable[RemoteFile]) -> Iterator[ImageFile]:
    for file in files:
        if is_packed(file.url):
            raise DataError(
                f"{file.url}: images are read by their place in a tar, and this one is compressed; unpack it"
            )
        for key, extension, offset, size, label in image_members(file):
            labels = key.split("/")[:-1][:1] if label == -1 else [str(label)]
            yield ImageFile(f"{file.url}:{key}.{extension}", file.url, offset, size, tuple(labels))
