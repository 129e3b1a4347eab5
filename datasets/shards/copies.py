"""The shard pyramid: smaller copies of a dataset's shards, for the stages with small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from datasets.errors import DataError
from datasets.shards.manifest import DatasetManifest
from datasets.shards.resolve import SEPARATOR, load_manifest

Area = tuple[float, float]
ROOM = 1.25
"""A copy's short side is at least this multiple of the image size: crops are scaled down more often than up."""


def copy_folder(short_side: int) -> str:
    """Return the name of a copy's folder, next to the shards."""
    return f"short-{short_side}"


def choose_copy(
    copies: Sequence[int], image_size: float, crop_area: Area | None = None, usual_area: Area = (1.0, 1.0)
) -> int:
    """Return the smallest copy whose short side is at least 1.25 times the image size; 0 (no copy) if there is none.

    At 128 px that is 160, at 192 px 240, at 300 px 375. Of smaller crops than usual the whole image is needed in more
    pixels.

    Args:
        copies: their short sides.
        image_size: short side of the crops in pixels; the images are taken to be of their aspect ratio.
        crop_area: smallest and largest share of the image's area that the stage's crops take; None: the usual ones.
        usual_area: those of the data.
    """
    if crop_area:
        image_size *= math.sqrt(sum(usual_area) / sum(crop_area))
    return min((side for side in copies if side >= ROOM * image_size), default=0)


def load_copies(manifest: DatasetManifest, url: str) -> dict[int, DatasetManifest]:
    """Return the manifests of the shards themselves (0) and of their copies, by short side.

    Raises:
        DataError: a copy is missing, or its shards don't have the same samples.
    """
    found = {0: manifest}
    names = [shard.name for shard in manifest.shards]
    for side in manifest.copies:
        folders = dict.fromkeys(f"{shard.index_folder}/{copy_folder(side)}" for shard in manifest.shards)
        copy = load_manifest(SEPARATOR.join(folders))
        by_url = {shard.url: shard for shard in copy.shards}
        wanted = [f"{shard.index_folder}/{copy_folder(side)}/{shard.name}" for shard in manifest.shards]
        if missing := [place for place in wanted if place not in by_url]:
            raise DataError(
                f"{missing[0]}: no such shard in the copy of short side {side}; write the copies of {url} again"
            )
        shards = tuple(by_url[place] for place in wanted)
        if [shard.samples for shard in shards] != [shard.samples for shard in manifest.shards]:
            raise DataError(f"{next(iter(folders))}: not a copy of the shards {names[0]}, ...; write the copies again")
        for shard, original in zip(shards, manifest.shards, strict=True):
            if shard.copy_of != original.rows and shard.copy_of and original.rows:
                raise DataError(
                    f"{shard.url}: a copy of {original.url} as it was indexed at another time: its labels may be "
                    "others; write the copies again"
                )
        found[side] = replace(copy, shards=shards, kind=manifest.kind, classes=manifest.classes)
    return found
