"""The data report: images per class and split, what was left out and why, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, pstdev
from typing import Any

from datasets.prepare.source import Item
from datasets.shards.manifest import DatasetManifest

_MOST_NAMES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What a prepared dataset holds."""

    images: dict[str, dict[str, int]]
    """split -> class -> images."""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    """reason -> (files, one of them)."""
    repeated: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What stands twice, such as `in train and val` -> (images, one of them)."""
    notes: tuple[str, ...] = ()
    """How the splits came about."""
    unit: str = "images"
    """What `images` counts: `labels` where an image has several, or none."""
    pixels: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of masks: split -> class, or `ignored` -> share of the pixels."""
    masked: dict[str, int] = field(default_factory=dict)
    """Of masks, in place of `images`: split -> images."""
    targets: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """Of targets, in place of `images`: split -> target -> images, smallest, mean, largest, standard deviation."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataReport:
        """Read what `to_json` returned."""
        return cls(**values)

    def lines(self) -> list[str]:
        """Return the report for a reader."""
        parts = [
            *(_split_line(split, counts, self.unit) for split, counts in self.images.items() if counts),
            *(f"{split}: {_count(images, 'images')}{self._pixels(split)}" for split, images in self.masked.items()),
            *(_target_line(split, rows) for split, rows in self.targets.items()),
            *self._empty_classes(),
            *self.notes,
            *self._left_out(),
            *(f"same image {where}: {images:,} ({example})" for where, (images, example) in self.repeated.items()),
        ]
        return ["data report", *(f"  {part}" for part in parts)]

    def _pixels(self, split: str) -> str:
        return _pixels_part(self.pixels[split]) if split in self.pixels else ""

    def _empty_classes(self) -> list[str]:
        splits: dict[tuple[str, ...], list[str]] = {}
        for split, counts in self.images.items():
            splits.setdefault(tuple(name for name, images in counts.items() if not images), []).append(split)
        return [f"no images of {_listed(empty)} in {', '.join(where)}" for empty, where in splits.items() if empty]

    def _left_out(self) -> list[str]:
        if not self.left_out:
            return []
        total = sum(files for files, _ in self.left_out.values())
        parts = (f"  {why}: {files:,} ({example})" for why, (files, example) in self.left_out.items())
        return [f"left out: {total:,} file{'s' if total > 1 else ''}", *parts]


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def report_of(manifest: DatasetManifest) -> list[str]:
    """Return the lines of the report that `jobs.prepare` left in a manifest; none where it left none."""
    values = manifest.source.get("report")
    return DataReport.from_json(values).lines() if values else []


def _split_line(split: str, counts: Mapping[str, int], unit: str) -> str:
    total = f"{split}: {_count(sum(counts.values()), unit)}"
    if len(counts) <= _MOST_NAMES:
        return f"{total}: " + ", ".join(f"{name} {images:,}" for name, images in counts.items())
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return f"{total} of {len(counts):,} classes, {counts[most]:,} of each"
    return f"{total} of {len(counts):,} classes, from {counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most})"


def _target_line(split: str, rows: Mapping[str, Sequence[float]]) -> str:
    count = next(iter(rows.values()))[0]
    shown = [
        f"{name} {low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {deviation:.3g}"
        for name, (_, low, mean, high, deviation) in rows.items()
    ]
    return f"{split}: {_count(int(count), 'images')}: {'; '.join(shown[:_MOST_NAMES])}"


def target_rows(names: Sequence[str], items: Sequence[Item]) -> dict[str, tuple[float, ...]]:
    """Return of each target images, smallest, mean, largest and standard deviation."""
    columns = zip(*(item.targets or () for item in items), strict=True)
    return {
        name: (len(column), min(column), fmean(column), max(column), pstdev(column))
        for name, column in zip(names, columns, strict=True)
    }


def _pixels_part(shares: Mapping[str, float]) -> str:
    ranked = sorted(shares, key=shares.__getitem__, reverse=True)
    shown = _listed([f"{name} {shares[name]:.2%}" for name in ranked if shares[name]])
    missing = [name for name in ranked if not shares[name]]
    return f", pixels: {shown}" + (f"; none of {_listed(missing)}" if missing else "")


def pixel_shares(classes: Sequence[str], pixels: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, dict[str, float]]:
    """Return each class's share of a split's pixels, of all that a mask has, and of those that are ignored if any are.

    Args:
        classes: names.
        pixels: split -> for each mask the pixels of each class, then those that are ignored; nothing without masks.
    """
    found: dict[str, dict[str, float]] = {}
    for split, rows in pixels.items():
        if rows:
            sums = [sum(column) for column in zip(*rows, strict=True)]
            shares = dict(zip([*classes, "ignored"], [count / sum(sums) for count in sums], strict=True))
            found[split] = {name: share for name, share in shares.items() if share or name != "ignored"}
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def repeated(images: Mapping[str, Sequence[tuple[str, int | tuple[float, ...], str]]]) -> dict[str, tuple[int, str]]:
    """Find images that stand twice by the digests of their bytes.

    Args:
        images: split -> (name, label, digest) of each.
    """
    found: dict[str, tuple[int, str]] = {}
    first: dict[str, tuple[str, int | tuple[float, ...], str]] = {}
    for split, rows in images.items():
        for name, label, digest in rows:
            if digest not in first:
                first[digest] = (split, label, name)
                continue
            other, other_label, other_name = first[digest]
            for where, holds in (
                (f"in {other} and {split}", other != split),
                ("under two classes" if isinstance(label, int) else "with other labels", other_label != label),
            ):
                if holds:
                    count, example = found.get(where, (0, f"{other_name} = {name}"))
                    found[where] = (count + 1, example)
    return found


def class_counts(classes: Sequence[str], items: Sequence[Item]) -> dict[str, int]:
    """Return the images of each class; nothing where they have masks in place of labels."""
    counts = Counter(label for item in items for label in (item.labels if item.labels is not None else (item.label,)))
    return {} if -1 in counts else {name: counts[label] for label, name in enumerate(classes)}
