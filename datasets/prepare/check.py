"""Reads and decodes every file before a shard is written, so that all broken ones are listed at once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import PLACE_ERRORS, DataError
from datasets.prepare.mask_classes import MaskClasses, NoClassError
from datasets.prepare.process_pool import count_one, run_tasks
from datasets.prepare.report import DataReport, class_counts, pixel_shares, repeated, target_rows
from datasets.prepare.source import Item, Plan, Source
from datasets.transforms.bands import checked_format
from datasets.transforms.formats import PixelFormat

_CACHE_NAME = ".checked.json"
_ITEMS_A_TASK = 64
_MOST_NAMED = 5
_MOST_IGNORED = 12
_Outcome = tuple[str, str, list[int], list[str | int]]
"""(digest of the bytes, what is wrong with them or "", pixels of each class and of none in its mask if it has one, or
the values of no class in a mask that is wrong, type and channels of its values where it can't be read as RGB)"""


@dataclass(frozen=True, slots=True)
class _CheckTask:
    source: Source
    split: str
    items: tuple[Item, ...]
    num_classes: int
    """of masks; 0: there are none"""


def checked(
    source: Source,
    plan: Plan,
    out: Path,
    *,
    images: str,
    workers: int,
    skip_broken: bool,
    progress: Callable[[int], None],
) -> tuple[Plan, DataReport]:
    """Decode every file of a source that lists somebody's files or has masks; return what is kept of the plan, and its
    report.

    The outcome is kept in `out`, so that an interrupted call doesn't decode everything again.

    Args:
        source: of the images.
        plan: of the source.
        out: folder of the shards.
        images: digest of the plan.
        workers: processes.
        skip_broken: leave out what can't be decoded; otherwise it is refused.
        progress: called with the files decoded so far.

    Raises:
        DataError: files that can't be decoded, or a split whose images are all those of another.
    """
    if not plan.is_listed and plan.kind != "segmentation":
        return plan, _report(plan)
    outcomes = _outcomes(source, plan, out / _CACHE_NAME, images, workers, progress)
    pairs = {split: list(zip(items, outcomes[split], strict=True)) for split, items in plan.splits.items()}
    pairs, stored = _of_one_kind(pairs)
    broken = [(wrong, values) for rows in pairs.values() for _, (_, wrong, values, _) in rows if wrong]
    if broken and not skip_broken:
        cure = _cure(source.mask_classes, [values for _, values in broken])
        raise DataError(_named([wrong for wrong, _ in broken], sum(map(len, pairs.values())), cure))
    kept = {split: [(item, digest) for item, (digest, wrong, *_) in rows if not wrong] for split, rows in pairs.items()}
    plan = replace(plan, splits={split: tuple(item for item, _ in rows) for split, rows in kept.items()})
    if stored:
        pixels = _format(stored)
        note = f"the images hold {pixels}: train with {' '.join(pixels.flags)}"
        origin = {**plan.origin, "pixels": {"type": pixels.kind, "channels": pixels.channels}}
        plan = replace(plan, origin=origin, notes=(*plan.notes, note))
    if broken:
        plan = replace(plan, left_out={**plan.left_out, "broken": (len(broken), broken[0][0])})
    twice = repeated({split: [(item.name, _label(item), key) for item, key in rows] for split, rows in kept.items()})
    for split in ("val", "test"):
        count, example = twice.get(f"in train and {split}", (0, ""))
        if count and count == len(kept[split]):
            raise DataError(f"{source.name}: every image of {split} is in train too ({example}); use different images")
    report = _report(plan, twice)
    if plan.kind == "segmentation":
        masks = {split: [counts for _, (_, wrong, counts, _) in rows if not wrong] for split, rows in pairs.items()}
        report = replace(report, pixels=pixel_shares(plan.classes, masks))
        _check_learnable(source, plan, report.pixels.get("train"))
        plan = replace(plan, splits=_with_rarest_classes(plan, masks))
    return plan, report


def _check_learnable(source: Source, plan: Plan, shares: Mapping[str, float] | None) -> None:
    """Refuse training masks whose pixels are of one class alone, or all ignored; None: no training split is written."""
    if shares is None or len(found := [name for name in plan.classes if shares[name]]) > 1:
        return
    if source.mask_classes is not None and source.mask_classes.is_binary:
        which = "no" if found == [plan.classes[0]] else "every"
        raise DataError(f"{source.name}: {which} pixel of the training masks reaches 128, so all are {found[0]!r}; "
                        "leave out --binary where the values are the classes' numbers")  # fmt: skip
    there = f"of the class {found[0]!r}" if found else "ignored"
    raise DataError(f"{source.name}: all pixels of the training masks are {there}; two classes at least are needed: "
                    "look at --classes and --ignore, or add masks")  # fmt: skip


def _with_rarest_classes(plan: Plan, masks: dict[str, list[list[int]]]) -> dict[str, tuple[Item, ...]]:
    """Return images labelled with the class that they are sampled by: the rarest one in their mask.

    Rare is what has few pixels in training. A mask of ignored pixels alone counts to the most frequent class: repeating
    it would teach nothing.

    Args:
        plan: of the images.
        masks: split -> for each image the pixels of each class, then those that are ignored.
    """
    of_training = next((rows for rows in (masks.get("train"), *masks.values()) if rows), [])
    pixels = [sum(column) for column in zip(*of_training, strict=True)][: len(plan.classes)]
    ranked = sorted(range(len(pixels)), key=pixels.__getitem__)
    return {
        split: tuple(
            replace(item, label=next((label for label in ranked if counts[label]), ranked[-1]))
            for item, counts in zip(items, masks[split], strict=True)
        )
        for split, items in plan.splits.items()
    }


def _of_one_kind(
    pairs: dict[str, list[tuple[Item, _Outcome]]],
) -> tuple[dict[str, list[tuple[Item, _Outcome]]], list[str | int]]:
    """Return the images with those marked as broken that are read in another way than the first one.

    With it comes type and channels of their values; empty: they are read as RGB.
    """
    good = [(item, stored) for rows in pairs.values() for item, (_, wrong, _, stored) in rows if not wrong]
    if not any(stored for _, stored in good):
        return pairs, []
    first, kind = good[0]

    def marked(item: Item, outcome: _Outcome) -> _Outcome:
        digest, wrong, counts, stored = outcome
        if wrong or stored == kind:
            return outcome
        return digest, f"{item.name}: it holds {_format(stored)}, {first.name} {_format(kind)}", counts, stored

    return {split: [(item, marked(item, one)) for item, one in rows] for split, rows in pairs.items()}, kind


def _format(stored: list[str | int]) -> PixelFormat:
    return PixelFormat(*stored)  # type: ignore[arg-type]


def _label(item: Item) -> int | tuple[float, ...]:
    return next((several for several in (item.targets, item.labels) if several is not None), item.label)


def _report(plan: Plan, twice: dict[str, tuple[int, str]] | None = None) -> DataReport:
    return DataReport(
        images={split: class_counts(plan.classes, items) for split, items in plan.splits.items()},
        masked={split: len(items) for split, items in plan.splits.items() if plan.kind == "segmentation"},
        left_out=dict(plan.left_out),
        repeated=twice or {},
        notes=plan.notes,
        unit="labels" if plan.kind == "multilabel" else "images",
        targets={split: target_rows(plan.classes, items) for split, items in plan.splits.items()}
        if plan.kind == "regression"
        else {},
    )


def _cure(meaning: MaskClasses | None, values: list[list[int]]) -> str:
    """Say what helps against broken images; `values` has for each the values of no class in its mask."""
    cures = [] if all(values) else ["repair or remove them"]
    if meaning is not None and any(values):
        ignored = [*meaning.ignored, *map(str, sorted({value for them in values for value in them}))]
        can_ignore = not meaning.by_colour and len(ignored) <= _MOST_IGNORED
        leave_out = f", or leave such pixels out by --ignore {' '.join(ignored)}" if can_ignore else ""
        cures.append(f"add the {meaning.unit}s to --classes{leave_out}")
    return "; ".join(cures)


def _named(broken: list[str], total: int, cure: str) -> str:
    """Say what is wrong with the first images, and the cure once."""
    more = f"; and {len(broken) - _MOST_NAMED:,} more" if len(broken) > _MOST_NAMED else ""
    return (
        f"{len(broken):,} of {total:,} images can't be read: {'; '.join(broken[:_MOST_NAMED])}{more}; {cure}, or leave "
        "the images out with --skip-broken"
    )


def _outcomes(
    source: Source, plan: Plan, cache: Path, images: str, workers: int, progress: Callable[[int], None]
) -> dict[str, list[_Outcome]]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["images"] == images:
            return {
                split: [(one, wrong, counts, stored) for one, wrong, counts, stored in rows]
                for split, rows in known["outcomes"].items()
            }
    except (OSError, ValueError, KeyError, TypeError):
        pass
    num_classes = len(plan.classes) if plan.kind == "segmentation" else 0
    tasks = [
        _CheckTask(source, split, items[start : start + _ITEMS_A_TASK], num_classes)
        for split, items in plan.splits.items()
        for start in range(0, len(items), _ITEMS_A_TASK)
    ]
    outcomes: dict[str, list[_Outcome]] = {split: [] for split in plan.splits}
    for task, rows in zip(tasks, run_tasks(_check, tasks, workers=workers, progress=progress), strict=True):
        outcomes[task.split] += rows
    temporary = cache.with_suffix(".tmp")
    temporary.write_text(json.dumps({"images": images, "outcomes": outcomes}), encoding="utf-8")
    temporary.replace(cache)
    return outcomes


def _check(task: _CheckTask) -> list[_Outcome]:
    rows: list[_Outcome] = []
    for item in task.items:
        try:
            _, data = task.source.encode(task.split, item)
            pixels = checked_format(data)
            counts = _pixels(task.source.mask(task.split, item, data), task.num_classes) if task.num_classes else []
            stored: list[str | int] = [] if pixels.is_rgb else [pixels.kind, pixels.channels]
            rows.append((hashlib.sha256(data).hexdigest()[:32], "", counts, stored))
        except PLACE_ERRORS:
            raise
        except (ValueError, OSError) as error:
            reason = str(error) if isinstance(error, DataError) else f"{item.name}: {error}"
            values = error.__cause__.values if isinstance(error.__cause__, NoClassError) else []
            rows.append(("", reason, values, []))
        count_one()
    return rows


def _pixels(mask: bytes, num_classes: int) -> list[int]:
    with Image.open(io.BytesIO(mask)) as image:
        counts = np.bincount(np.asarray(image).ravel(), minlength=num_classes)
    return [*map(int, counts[:num_classes]), int(counts[num_classes:].sum())]
