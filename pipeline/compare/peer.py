"""Trains a run's model on its images by timm's own train.py, unmodified, in a process of its own."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets.shards.manifest import DatasetManifest
from infra.storage.base import MissingKeyError
from infra.storage.open import open_storage
from infra.tracking.spool import stored_key
from infra.tracking.tracker import Tracker
from pipeline.compare.history import Evaluation, History
from pipeline.compare.peer_flags import EPOCHS, MODEL, script_flags
from pipeline.compare.remote import on_worker
from pipeline.compare.runs import Planned
from pipeline.config import TrainConfig
from pipeline.run.provenance import config_values, machine
from pipeline.run.record import synced_record

ROOT = Path(__file__).parents[2]
"""What the script's process must be able to import from."""
_WRITTEN_AT_ONCE = 256


def peer_history(run: Planned, metric: str, parent: str, comparison: str, script: str) -> History:
    """Return the history of the script's training: the one in storage, else trained now on the cluster, and on record
    in MLflow.

    Raises:
        RuntimeError: its training failed.
    """
    config = run.ready.config
    storage = open_storage(config.folder)
    key = f"train-{hashlib.sha256(Path(script).read_bytes()).hexdigest()[:12]}.json"
    with suppress(MissingKeyError):
        history = _from_json(json.loads(storage.read(key)), run, storage.uri, reused=True)
        if synced_record(config) == "open" or not stored_key(storage):  # it was killed before
            _record(history, config, parent, comparison, metric)
        return history
    splits = run.ready.train, run.ready.val
    found = on_worker(config.cluster, config.name, train_by_script, config, *splits, str(Path(script).resolve()))
    storage.write(key, json.dumps(found, indent=1).encode())
    history = _from_json(found, run, storage.uri, reused=False)
    _record(history, config, parent, comparison, metric)
    return history


def _from_json(values: dict[str, Any], run: Planned, where: str, *, reused: bool) -> History:
    rows = tuple(Evaluation(**row) for row in values.pop("evaluations"))
    about: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "fingerprint": run.fingerprint, "where": where}
    return History(name=run.ready.config.name, evaluations=rows, reused=reused, **about, **values)


def _record(history: History, config: TrainConfig, parent: str, comparison: str, metric: str) -> None:
    storage = open_storage(history.where)
    tracking = replace(config.tracking, parent_run_id=parent, system_metrics=False)
    tracker = Tracker(tracking, history.name, storage=storage)
    tracker.log_params({"compare.comparison": comparison, "compare.variant": history.variant, "seed": history.seed})
    for one in history.evaluations:
        row = {metric: one.score, "train_s": one.train_s, "cpu_s": one.cpu_s}
        tracker.log_metrics(row, step=one.cursor)
    tracker.close("FINISHED")


def train_by_script(config: TrainConfig, train: DatasetManifest, val: DatasetManifest, script: str) -> dict[str, Any]:
    """Run the script on this machine; return what a `History` is made of.

    Raises:
        RuntimeError: it failed; its last line.
    """
    import torch

    from pipeline.training.evaluation import compute_type

    device = torch.device("cuda" if config.cluster.gpus_per_worker and torch.cuda.is_available() else "cpu")
    bf16 = compute_type(config.trainer, device) is torch.bfloat16
    flags = script_flags(config, len(train.classes), bf16=bf16, device=device.type)
    with TemporaryDirectory(prefix="peer-") as place:
        folder = Path(place)
        lay_out(train, folder / "train")
        lay_out(val, folder / "val")
        (folder / "classes.txt").write_text("".join(f"{class_folder(label)}\n" for label in range(len(train.classes))))
        (folder / "flags.yaml").write_text(json.dumps(flags))  # JSON is YAML
        (folder / MODEL).write_text(json.dumps(config_values(config.model)))
        _run(script, folder, config.cluster.threads_per_worker)
        summary = list(csv.DictReader((folder / "out" / "summary.csv").read_text().splitlines()))
        return results(summary, json.loads((folder / EPOCHS).read_text()))


def class_folder(label: int) -> str:
    """Return the folder of a class's images, so named that it sorts as its number."""
    return f"{label:06d}"


def lay_out(manifest: DatasetManifest, folder: Path) -> None:
    """Write each image of the shards as a file in the folder of its class."""
    from datasets.loading.reader import SampleReader

    for label in range(len(manifest.classes)):
        (folder / class_folder(label)).mkdir(parents=True)
    reader, ids = SampleReader(manifest), range(manifest.num_samples)
    for start in range(0, len(ids), _WRITTEN_AT_ONCE):
        some = ids[start : start + _WRITTEN_AT_ONCE]
        for number, sample in zip(some, reader.read_each(some), strict=True):
            # Whatever it is: the script takes files by their suffix, and Pillow looks at what is in them.
            (folder / class_folder(sample.label) / f"{number:09d}.jpg").write_bytes(sample.data)


def _run(script: str, folder: Path, threads: int) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    command = [sys.executable, script, "--config", "flags.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{script}: {lines[-1]}")


def results(summary: Sequence[Mapping[str, str]], clock: Mapping[str, Any]) -> dict[str, Any]:
    """Join the script's table of evaluations with the plugin's times."""
    epochs = clock["epochs"]
    scores = {int(row["epoch"]): float(row["eval_top1"]) / 100 for row in summary}
    rows: list[Evaluation] = []
    train_s = cpu_s = eval_s = 0.0
    for number, (one, following) in enumerate(pairwise([*epochs, {"start": clock["finish"]}])):
        train_s += one["end"]["wall_s"] - one["start"]["wall_s"]
        cpu_s += one["end"]["cpu_s"] - one["start"]["cpu_s"]
        eval_s += following["start"]["wall_s"] - one["end"]["wall_s"]
        if number in scores:
            rows.append(
                Evaluation(cursor=one["samples"], score=scores[number], train_s=train_s, cpu_s=cpu_s, eval_s=eval_s,
                           pixels=float(one["pixels"]))
            )  # fmt: skip
    return {
        "evaluations": [asdict(row) for row in rows],
        "metrics": {"val/accuracy": rows[-1].score},
        "samples": rows[-1].cursor,
        "peak_bytes": clock["peak_bytes"],
        "machine": machine(),
    }
