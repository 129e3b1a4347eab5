"""Which number a class has: by a list that a user names, or by the labels that are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.urls import join, tag_of
from datasets.shards.class_names import is_whole_number
from datasets.shards.indexing import read_classes
from datasets.shards.manifest import MANIFEST_NAME, read_manifest


def class_names(given: str) -> tuple[str, ...]:
    """Return the class names that --classes means, in label order.

    Args:
        given: names separated by commas, a JSON list of them, a file of them as `jobs.index --classes` takes it, or a
            folder of prepared data.

    Raises:
        DataError: none of these, or a name that is there twice.
    """
    names = _read(given)
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"--classes {given}: {twice[0]!r} is there twice")
    return names


def are_named(given: str) -> bool:
    """Say whether `class_names` finds names in this, right or wrong."""
    if given.startswith("[") or (not is_remote(given) and ("," in given or _is(Path.is_file, given))):
        return True
    return bool(_manifest_folder(given)) or given.endswith((".txt", ".json"))


def sorted_names(found: Iterable[str]) -> tuple[str, ...]:
    """Return labels in order of their names, or of their numbers where all are whole numbers."""
    names = {*found}
    numeric = all(is_whole_number(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names))


def _read(given: str) -> tuple[str, ...]:
    if given.startswith("["):
        try:
            return tuple(map(str, json.loads(given)))
        except ValueError as error:
            raise DataError(f"--classes {given}: not a JSON list ({error})") from None
    if folder := _manifest_folder(given):
        return read_manifest(folder).classes
    if is_remote(given) or _is(Path.exists, given):
        return read_classes(given)
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if len(names) < 2:
        raise DataError(f"--classes {given}: no such file or folder, and one class alone; name two at least, as in "
                        "cat,dog")  # fmt: skip
    return names


def _manifest_folder(place: str) -> str:
    """Return the folder that has a manifest: this one, or that of its training split; empty: none."""
    for folder in (place, join(place, "train")):
        manifest = join(folder, MANIFEST_NAME)
        if tag_of(manifest) if is_remote(place) else _is(Path.is_file, manifest):
            return folder
    return ""


def _is(question: Callable[[Path], bool], place: str) -> bool:
    try:
        return question(Path(place))
    except OSError:  # a list of names is longer than a file's name may be
        return False
