"""Which columns of a Parquet file hold images and labels: by their types, and by what Hugging Face notes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets.errors import DataError
from datasets.files.tables import cell_text

if TYPE_CHECKING:
    from pyarrow import DataType, Schema


class Columns(NamedTuple):
    """Which columns hold what."""

    image: str
    label: str
    """empty where masks are what is learned"""
    names: tuple[str, ...] = ()
    """of the classes, where the file says them"""
    several: bool = False
    """a row has a list of labels"""

    def names_of(self, value: object) -> tuple[str, ...] | None:
        """Return the names of the classes that a label means; None where it means none.

        Raises:
            IndexError: the number of no class.
        """
        if not self.label:
            return ()
        if self.several and isinstance(value, list):
            return tuple(name for one in value if (name := self._name(one)))
        name = "" if self.several or value == -1 else self._name(value)
        return (name,) if name else None

    def _name(self, value: object) -> str:
        if not self.names or not isinstance(value, int):
            return str(cell_text(value))
        if value < 0:
            raise IndexError
        return self.names[value]


def find_columns(url: str, schema: Schema, *, image: str, label: str, mask: str) -> Columns:
    """Find the columns of images and labels.

    Args:
        url: of the file.
        schema: of the file.
        image: name of the column with images; empty: the only one of bytes.
        label: name of the one with labels; empty: the only one of classes, or `label`.
        mask: name of the one with masks; empty: labels are what is learned.

    Raises:
        DataError: there is none, or more than one could be meant.
    """
    features = _features(schema.metadata or {}, url)
    images = [field.name for field in schema if _holds_bytes(field.type) and field.name != mask]
    image = _chosen(url, schema.names, image, images, "images", "--image-column")
    if mask:
        return Columns(image, _chosen(url, schema.names, mask, [], "masks", "--mask-column") and "")
    classes = {name: names for name in schema.names if (names := _class_names(features.get(name)))}
    labels = [*classes] or [name for name in schema.names if name == "label"]
    label = _chosen(url, schema.names, label, labels, "labels", "--label-column")
    several = str(schema.field(label).type).startswith(("list", "large_list", "fixed_size_list"))
    return Columns(image, label, classes.get(label, ()), several)


def _features(metadata: Mapping[bytes, bytes], url: str) -> dict[str, Any]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{url}: its note of types (`huggingface`) can't be read ({error}); fetch it again") from None
    return features if isinstance(features, dict) else {}


def _class_names(feature: object) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of these."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else ()
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) else _class_names(feature.get("feature"))


def _holds_bytes(kind: DataType) -> bool:
    text = str(kind)
    return text in ("binary", "large_binary") or (text.startswith("struct<") and "bytes: " in text)


def _chosen(url: str, there: Sequence[str], given: str, found: Sequence[str], what: str, flag: str) -> str:
    if given in there or (not given and len(found) == 1):
        return given or found[0]
    shown = ", ".join(there)
    if given:
        raise DataError(f"{url}: no column {given!r} in it, only {shown}; name it with {flag}")
    which = f"{' and '.join(found)} could each be" if found else f"none of {shown} seems to be"
    raise DataError(f"{url}: {which} the column of {what}; name it with {flag}")
