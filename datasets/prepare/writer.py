"""Writes shards from a source: planned first, written in parallel and atomically, resumed after an interruption."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets.cpus import usable_cpus
from datasets.errors import DataError
from datasets.loading.reader import SampleReader
from datasets.prepare.check import checked
from datasets.prepare.folder_lock import locked
from datasets.prepare.layout import STATE_NAME
from datasets.prepare.process_pool import count_one, run_tasks
from datasets.prepare.report import DataReport
from datasets.prepare.source import Item, Plan, Source
from datasets.shards.class_names import check_names
from datasets.shards.describe import write_manifest
from datasets.shards.manifest import MANIFEST_NAME, DatasetManifest
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import LABELS_EXTENSION, MASK_EXTENSION, TARGETS_EXTENSION, index_shard

SPLITS = ("train", "val")
_ALL_SPLITS = (*SPLITS, "test")
_NAME_CHARACTERS = 60
_LATER_OPTIONS = frozenset({"split", "classes", "targets"})
"""Options that older shards were written without: those are gone on with where they aren't given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterConfig:
    """How shards are written."""

    samples_per_shard: int = 1000
    """Maximum number of images per shard."""
    workers: int = field(default_factory=usable_cpus)
    """Number of processes that write shards."""
    overwrite: bool = False
    """Replace shards in the output folder that were made from other data."""
    skip_broken: bool = False
    """Leave out files that can't be decoded, and count them in the data report, instead of ending with an error."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class _ShardTask:
    source: Source
    split: str
    path: Path
    first: int
    items: tuple[Item, ...]
    has_masks: bool


def prepare(
    source: Source,
    out: Path,
    config: WriterConfig,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, DatasetManifest]:
    """Write `out/train` and `out/val` (and `out/test`) with their manifests, and return these by split.

    What is finished already is kept, so an interrupted call is gone on with by calling again.

    Args:
        source: of the images.
        out: folder, made if missing.
        config: shard size and processes.
        progress: called a few times a second with (images done, images in all, what was done to them): `checked`,
            where they are somebody's files, then `written`.

    Raises:
        DataError: the folder holds shards of something else, or an image can't be used.
    """
    _check_apart(source, out)
    plan = source.plan()
    _check_plan(source, plan)
    description = _describe(source, plan, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: no folder can be made there ({error.strerror}); use another --out") from error
    with locked(out, "wait for it or use another --out"):
        _claim(out, description, overwrite=config.overwrite)
        done = {split: manifest for split in plan.splits if (manifest := _finished(out / split)) is not None}
        if len(done) < len(plan.splits):
            total = sum(map(len, plan.splits.values()))
            plan, report = checked(
                source,
                plan,
                out,
                images=description["images"],
                workers=config.workers,
                skip_broken=config.skip_broken,
                progress=lambda count: progress(count, total, "checked"),
            )
            _check_plan(source, plan)
            done |= _write_splits(source, plan, out, config, {**description, **plan.origin}, report, done, progress)
        return {split: done[split] for split in plan.splits}


def _write_splits(
    source: Source,
    plan: Plan,
    out: Path,
    config: WriterConfig,
    record: dict[str, Any],
    report: DataReport,
    done: Mapping[str, DatasetManifest],
    progress: Callable[[int, int, str], None],
) -> dict[str, DatasetManifest]:
    """Write the shards that are missing, then the manifests of the splits that have none."""
    tasks = {split: _shard_tasks(source, split, plan, out, config) for split in plan.splits if split not in done}
    waiting = [task for split in tasks for task in tasks[split] if not _is_whole(task)]
    total = sum(map(len, plan.splits.values()))
    kept = total - sum(len(task.items) for task in waiting)
    run_tasks(
        _write_shard,
        waiting,
        workers=config.workers,
        progress=lambda count: progress(kept + count, total, "written"),
    )
    record = {**record, "report": report.to_json()}
    return {
        split: write_manifest(
            out / split,
            [task.path.name for task in tasks[split]],
            classes=plan.classes,
            kind=plan.kind,
            source=record,
        )
        for split in tasks
    }


def _check_apart(source: Source, out: Path) -> None:
    """Refuse shards below a folder whose files are all taken for the source's own the next time."""
    for folder in source.walked:
        for place in (out / split for split in _ALL_SPLITS):
            if place.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"--out {out}: {place} lies in the folder {folder}, which is read; choose an --out "
                                "outside it")  # fmt: skip


def _check_plan(source: Source, plan: Plan) -> None:
    check_names(plan.classes, source.name)
    for split in {**dict.fromkeys(() if plan.is_one_split else SPLITS), **plan.splits}:
        items = plan.splits.get(split, ())
        if not items:
            raise DataError(f"{source.name}: the {split} split would be empty; give it more images or another split")
        if len({item.name for item in items}) != len(items):
            raise DataError(f"{source.name}: two images of the {split} split have the same name")


def _describe(source: Source, plan: Plan, config: WriterConfig) -> dict[str, Any]:
    """Return what the shards are made from: equal descriptions give equal bytes."""
    # Where files lie is not what they are: the digest of the images tells that.
    values = asdict(source).items()  # type: ignore[call-overload]
    options = {
        name: value
        for name, value in values
        if not isinstance(value, Path) and name not in source.places and (value or name not in _LATER_OPTIONS)
    }
    digest = hashlib.sha256(json.dumps(plan.classes).encode())
    for split, items in plan.splits.items():
        for item in items:
            label = item.label if item.labels is None and item.targets is None else labels_text(item)
            digest.update(f"{split}\0{item.name}\0{label}\0{item.mark}\n".encode())
    # Files were once turned into JPEGs: such shards aren't gone on with.
    listed = {"files": "as they are", "skip_broken": config.skip_broken} if plan.is_listed else {}
    return {
        "source": source.name,
        "options": json.loads(json.dumps(options)),
        **listed,
        "samples_per_shard": config.samples_per_shard,
        "images": digest.hexdigest()[:32],
    }


def _claim(out: Path, description: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder ours: new, or of the same description, or emptied of shards when that is asked for."""
    state, ours = out / STATE_NAME, json.dumps(description, indent=2, ensure_ascii=False)
    old = state.read_text(encoding="utf-8") if state.is_file() else ""
    shards = [path for split in _ALL_SPLITS for path in (out / split).glob("*.tar")]
    if old == ours:
        return
    if shards and not overwrite:
        raise DataError(f"{out}: {_difference(old, description)}; use another --out, or --overwrite to replace them")
    listings = [
        path for split in _ALL_SPLITS for name in (MANIFEST_NAME, "index*.npy") for path in (out / split).glob(name)
    ]
    for path in [*listings, *shards]:
        path.unlink(missing_ok=True)
    _replace_text(state, ours)


def _difference(old: str, new: dict[str, Any]) -> str:
    """Say in a few words what the shards that are there were made from instead."""
    try:
        before = json.loads(old)
        flat, wanted = ({**value.pop("options"), **value} for value in (before, dict(new)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "holds shards that were not written by this command"
    changed = [name for name in wanted if flat.get(name) != wanted[name] and name != "images"]
    if not changed:
        return "holds shards of other images: its images have changed since, or they are of another source"
    return "holds shards made with " + ", ".join(
        f"{name}={flat.get(name)!r} (now {wanted[name]!r})" for name in changed
    )


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _shard_tasks(source: Source, split: str, plan: Plan, out: Path, config: WriterConfig) -> list[_ShardTask]:
    """Cut a split into shards of nearly equal counts, the images or chunks mixed by the hash of their names."""
    items = sorted(plan.splits[split], key=lambda item: hashlib.sha256((item.chunk or item.name).encode()).digest())
    count, has_masks = -(-len(items) // config.samples_per_shard), plan.kind == "segmentation"
    bounds = [index * len(items) // count for index in range(count + 1)]
    return [
        _ShardTask(source, split, out / split / f"{split}-{index:06d}.tar", start, tuple(items[start:stop]), has_masks)
        for index, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _is_whole(task: _ShardTask) -> bool:
    """A shard has its name only once it is whole; a look inside guards against a damaged disk."""
    try:
        return task.path.is_file() and len(index_shard(task.path)) == len(task.items)
    except DataError:
        return False


def _write_shard(task: _ShardTask) -> None:
    import webdataset as wds  # brings PyTorch in, which takes seconds: a mistake in the arguments is said before

    temporary = task.path.with_name(f".{task.path.name}.tmp")
    temporary.parent.mkdir(exist_ok=True)
    with temporary.open("wb") as stream:
        with wds.TarWriter(stream, mtime=0) as tar:
            for number, item in enumerate(task.items, start=task.first):
                extension, data = task.source.encode(task.split, item)
                truth = _truth(task, item, data)
                tar.write({"__key__": _key(number, item.name), extension: data, **truth})
                count_one()
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(task.path)


def _truth(task: _ShardTask, item: Item, image: bytes) -> dict[str, int | bytes]:
    """Return what is written of an image beside it: extension -> content."""
    if item.targets is not None:
        return {TARGETS_EXTENSION: labels_text(item).encode()}
    if item.labels is not None:
        return {LABELS_EXTENSION: labels_text(item).encode()}
    if not task.has_masks:
        return {"cls": item.label}
    label: dict[str, int | bytes] = {"cls": item.label} if item.label >= 0 else {}
    return {MASK_EXTENSION: task.source.mask(task.split, item, image), **label}


def labels_text(item: Item) -> str:
    """Return the content of an item's `.labels` or `.targets` member."""
    numbers = item.labels if item.targets is None else item.targets
    assert numbers is not None
    return " ".join(map(repr, numbers))


def _key(number: int, name: str) -> str:
    """Number and name: unique, in the tar's order, and telling where the image came from."""
    return f"{number:08d}-{re.sub('[^A-Za-z0-9]+', '_', name)[-_NAME_CHARACTERS:].strip('_')}"


def _finished(folder: Path) -> DatasetManifest | None:
    """Return the manifest of a split that is complete: it is written last, and shards and index must fit it."""
    try:
        manifest = load_manifest(str(folder))
        SampleReader(manifest).close()
    except DataError:
        return None
    return manifest
