"""The names of classes that a user gives with --classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.urls import join, read_file, tag_of
from datasets.shards.class_names import check_names
from datasets.shards.manifest import MANIFEST_NAME, read_manifest

_FILES = (".txt", ".json")


def class_names(given: str, *, unique: bool = True, least: int = 2) -> tuple[str, ...]:
    """Return the class names that --classes means, in label order.

    Args:
        given: names separated by commas, a JSON list of them, a file of them (a JSON list, a JSON object from name to
            number, a manifest.json, or a name a line), or a folder of prepared data.
        unique: refuse a name that is there twice, as ImageNet's "crane" is.
        least: how many are to be named. One name with a slash is taken for a path all the same.

    Raises:
        DataError: none of these, or a name that is there twice or is not one line.
    """
    names = _read(given, least)
    check_names(names, "--classes")
    if unique and (twice := [name for name in names if names.count(name) > 1]):
        raise DataError(f"--classes {given}: {twice[0]!r} is there twice")
    return names


def are_named(given: str) -> bool:
    """Say whether `class_names` finds names in this, right or wrong."""
    if given.startswith("[") or (not is_remote(given) and ("," in given or _is(Path.is_file, given))):
        return True
    return bool(_manifest_folder(given)) or given.endswith(_FILES)


def _read(given: str, least: int) -> tuple[str, ...]:
    if given.startswith("["):
        try:
            return tuple(map(str, json.loads(given)))
        except ValueError as error:
            raise DataError(f"--classes {given}: not a JSON list ({error})") from None
    if folder := _manifest_folder(given):
        return read_manifest(folder).classes
    if is_remote(given) or given.endswith(_FILES) or _is(Path.exists, given):
        return _in_file(given)
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if len(names) < least:
        raise DataError(f"--classes {given}: no such file or folder, and one class alone; name two at least, as in "
                        "cat,dog")  # fmt: skip
    if len(names) == 1 and "/" in given:
        raise DataError(f"--classes {given}: no such file or folder; a target of this name is given as a JSON list")
    return names


def _in_file(path: str) -> tuple[str, ...]:
    try:
        text = read_file(path if is_remote(path) else str(Path(path).absolute())).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a readable file of class names ({error}); give a file, or the names, as in cat,dog"
        ) from None
    try:
        content = json.loads(text)
    except ValueError:
        content = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(content, dict) and "classes" in content:
        content = content["classes"]
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise DataError(f"{path}: the class numbers must be 0 to {len(content) - 1}, each once")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: no class names in it; give a JSON list, an object of name and number, or lines")
    return tuple(map(str, content))


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
