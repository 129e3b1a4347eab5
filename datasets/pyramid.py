"""Write the shard pyramid: copies of a folder's shards with smaller images, and everything else as it is."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from datasets.copies import copy_folder
from datasets.errors import DataError
from datasets.index_rows import load_index
from datasets.manifest import DatasetManifest, read_manifest, save_manifest
from datasets.places import is_packed
from datasets.pool import count_one, run_tasks
from datasets.remote import RemoteFile
from datasets.shards import describe
from datasets.tar_index import IMAGE_EXTENSIONS, MASK_EXTENSION, scan_shard

QUALITY = 92
_ORIGIN_NAME = "copy-of.txt"


@dataclass(frozen=True, slots=True)
class _Task:
    source: Path
    target: Path
    short_side: int


def write_copies(
    folder: Path,
    short_sides: Sequence[int],
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetManifest:
    """Write a copy of a local folder's shards for each short side, and name the copies in its manifest.

    A copy lies in `short-SIDE` below the folder and has the same keys, counts and order. Images are scaled down to the
    short side (a JPEG of quality 92), those that are no larger stay as they are. What is finished already is kept.

    Raises:
        DataError: shards that can't be read, or an image among them.
    """
    manifest = read_manifest(folder)
    if packed := next((shard.url for shard in manifest.shards if is_packed(shard.url)), None):
        raise DataError(f"{packed}: copies are made of plain tars; unpack it first")
    targets = {side: folder / copy_folder(side) for side in sorted(set(short_sides))}
    for target in targets.values():
        _claim(target, manifest)
    tasks = [
        _Task(shard.path, targets[side] / shard.name, side)
        for side, shard in itertools.product(targets, manifest.shards)
    ]
    waiting = [task for task in tasks if not task.target.exists()]
    total = manifest.num_samples * len(targets)
    kept = total - sum(shard.samples for task in waiting for shard in manifest.shards if shard.path == task.source)
    run_tasks(_copy_shard, waiting, workers=workers, progress=lambda count: progress(min(kept + count, total), total))
    for side, target in targets.items():
        _index_copy(target, side, manifest, folder)
    manifest = replace(manifest, copies=tuple(sorted({*manifest.copies, *targets})))
    save_manifest(folder, manifest)
    return manifest


def _claim(target: Path, manifest: DatasetManifest) -> None:
    """Make a copy's folder one of these shards: a copy of other ones is removed."""
    origin = target / _ORIGIN_NAME
    if not origin.is_file() or origin.read_text() != manifest.fingerprint:
        for path in target.glob("*.tar"):
            path.unlink()
        target.mkdir(exist_ok=True)
        origin.write_text(manifest.fingerprint)


def _index_copy(target: Path, side: int, manifest: DatasetManifest, folder: Path) -> None:
    """Write a copy's index: its own places of the images, the labels of the shards themselves."""
    index = load_index(folder)
    files = [
        RemoteFile(str(target / shard.name), (target / shard.name).stat().st_size, "") for shard in manifest.shards
    ]
    parts = []
    for shard, file in zip(manifest.shards, files, strict=True):
        rows = scan_shard(file).rows
        labels = index["label"][shard.first_row : shard.first_row + shard.samples]
        if len(rows) != len(labels):
            raise DataError(f"{file.url}: {len(rows)} samples, its original has {len(labels)}; remove the copy")
        rows["label"] = labels
        parts.append(rows)
    source = {"short_side": side, "copy_of": manifest.fingerprint}
    save_manifest(target, *describe(files, parts, classes=manifest.classes, kind=manifest.kind, source=source))


def _copy_shard(task: _Task) -> None:
    temporary = task.target.with_name(f".{task.target.name}.tmp")
    with tarfile.open(task.source, "r:") as source, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as target:
        for info in source:
            stream = source.extractfile(info) if info.isreg() else None
            if stream is None:
                continue
            extension = info.name.rpartition("/")[2].partition(".")[2].lower()
            try:
                data = shrunk(stream.read(), extension, task.short_side)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{task.source}: {info.name!r} is damaged ({error})") from error
            copy = tarfile.TarInfo(info.name)
            copy.size = len(data)
            target.addfile(copy, io.BytesIO(data))
            if extension in IMAGE_EXTENSIONS:
                count_one()
    temporary.replace(task.target)


def shrunk(data: bytes, extension: str, short_side: int) -> bytes:
    """Return an image, or a mask, scaled down to a short side in its own format; anything else as it is."""
    if extension not in IMAGE_EXTENSIONS and extension != MASK_EXTENSION:
        return data
    with Image.open(io.BytesIO(data)) as image:
        if min(image.size) <= short_side:
            return data
        kind, exif = image.format, image.info.get("exif", b"")
        scale = short_side / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if extension == MASK_EXTENSION:
            small = image.resize(size, Image.Resampling.NEAREST)
        else:
            plain = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
            small = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    stream = io.BytesIO()
    lossy = {"quality": QUALITY} if kind in ("JPEG", "WEBP") else {}
    small.save(stream, kind, **lossy, **({"exif": exif} if exif else {}))
    return stream.getvalue()
