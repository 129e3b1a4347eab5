"""Trains the same model with timm's loader and building blocks, on the same shards, in a process like a worker's.

What is the same: the model and its initial weights, shards, epochs, batch, crop areas, flips, label smoothing, the
optimizer's settings, the rate's curve, the moving average's decay, the precision, the evaluation's crop, one process
of as many threads. What is timm's own: reading tars, decoding, RandAugment's operations, Mixup, the update of the
weights.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any

from datasets.shards.manifest import DatasetManifest
from infra.storage.base import MissingKeyError
from infra.storage.open import open_storage
from infra.tracking.spool import stored_key
from infra.tracking.tracker import Tracker
from pipeline.compare.history import Evaluation, History
from pipeline.compare.remote import on_worker
from pipeline.compare.runs import Planned
from pipeline.config import TrainConfig
from pipeline.run.provenance import machine
from pipeline.training.learning_rate import learning_rate

FILE = "twin.json"


@dataclass(frozen=True, slots=True)
class Split:
    """Shards as timm reads them."""

    paths: tuple[str, ...]
    samples: int


def peer_history(run: Planned, metric: str, parent: str, comparison: str) -> History:
    """Return a twin's history: the one in storage, else trained now on the cluster, and on record in MLflow.

    Raises:
        RuntimeError: its training failed.
    """
    config = run.ready.config
    storage = open_storage(f"{config.storage}/{config.name}-timm")
    with suppress(MissingKeyError):
        history = _from_json(json.loads(storage.read(FILE)), run, storage.uri, reused=True)
        if not stored_key(storage):  # it was ended before it was on record
            _record(history, config, parent, comparison, metric)
        return history
    splits = [_split(manifest) for manifest in (run.ready.train, run.ready.val)]
    classes, per_epoch = len(run.ready.train.classes), run.ready.samples_per_epoch
    found = on_worker(config.cluster, f"{config.name}-timm", train_with_timm, config, *splits, classes, per_epoch)
    storage.write(FILE, json.dumps(found, indent=1).encode())
    history = _from_json(found, run, storage.uri, reused=False)
    _record(history, config, parent, comparison, metric)
    return history


def _split(manifest: DatasetManifest) -> Split:
    return Split(tuple(str(shard.path) for shard in manifest.shards), manifest.num_samples)


def _from_json(values: dict[str, Any], run: Planned, where: str, *, reused: bool) -> History:
    rows = tuple(Evaluation(**row) for row in values.pop("evaluations"))
    about: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "fingerprint": run.fingerprint, "where": where}
    return History(name=f"{run.ready.config.name}-timm", evaluations=rows, reused=reused, **about, **values)


def _record(history: History, config: TrainConfig, parent: str, comparison: str, metric: str) -> None:
    storage = open_storage(history.where)
    tracking = replace(config.tracking, parent_run_id=parent, system_metrics=False)
    tracker = Tracker(tracking, history.name, storage=storage)
    tracker.log_params({"compare.comparison": comparison, "compare.variant": history.variant, "seed": history.seed})
    for one in history.evaluations:
        row = {metric: one.score, "train_s": one.train_s, "cpu_s": one.cpu_s}
        tracker.log_metrics(row, step=one.cursor)
    tracker.close("FINISHED")


def train_with_timm(
    config: TrainConfig, train: Split, val: Split, num_classes: int, samples_per_epoch: int
) -> dict[str, Any]:
    """Train in this process; return what a `History` is made of."""
    import torch

    twin = _Twin(config, train, val, num_classes)
    stage = config.stages[-1]
    steps = round(sum(one.epochs for one in config.stages) * samples_per_epoch / stage.batch_size)
    per_epoch = max(1, round(samples_per_epoch / stage.batch_size))
    rows: list[Evaluation] = []
    train_s = cpu_s = eval_s = 0.0
    step = 0
    rate = partial(learning_rate, config.optimizer, samples_per_epoch=samples_per_epoch,
                   total_samples=steps * stage.batch_size)  # fmt: skip
    batches = twin.batches()
    while step < steps:
        started, cpu_started = time.perf_counter(), time.process_time()
        for images, labels in islice(batches, min(per_epoch, steps - step)):
            twin.step(images, labels, rate(cursor=step * stage.batch_size))
            step += 1
        twin.wait()
        train_s += time.perf_counter() - started
        cpu_s += time.process_time() - cpu_started
        started = time.perf_counter()
        score = twin.accuracy()
        eval_s += time.perf_counter() - started
        cursor = step * stage.batch_size
        pixels = float(cursor * stage.image_size**2)
        rows.append(Evaluation(cursor=cursor, score=score, train_s=train_s, cpu_s=cpu_s, eval_s=eval_s, pixels=pixels))
    on_gpu = twin.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "evaluations": [asdict(row) for row in rows],
        "metrics": {"val/accuracy": rows[-1].score},
        "samples": rows[-1].cursor,
        "peak_bytes": peak,
        "machine": machine(),
    }


def _rand_augment(magnitude: float, layers: int) -> str:
    """Return what timm calls RandAugment as ours is: each operation is carried out, and the stronger the higher the
    magnitude. By timm's defaults half of them are not, and solarizing and others grow weaker with it."""
    return f"rand-m{magnitude:g}-n{layers}-p1-inc1"


class _Twin:
    """Model, loaders, optimizer and moving average, timm's but for the model."""

    def __init__(self, config: TrainConfig, train: Split, val: Split, num_classes: int) -> None:
        import torch
        from timm.data import Mixup
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3, random_seed

        from model.factory import build_model
        from model.regularization import set_dropout, set_stochastic_depth

        torch.set_num_threads(config.cluster.threads_per_worker)
        random_seed(config.seed)  # Python's and NumPy's too, which timm augments by
        self.config, self.stage = config, config.stages[-1]
        cuda = config.cluster.gpus_per_worker and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        model = build_model(config.model, num_classes=num_classes)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        set_dropout(self.model, self.stage.dropout)
        depth = self.stage.stochastic_depth
        set_stochastic_depth(self.model, config.model.stochastic_depth if depth is None else depth)
        how = config.optimizer
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=how.lr, weight_decay=how.weight_decay, betas=(how.momentum, 0.999)
        )
        # With these it is n / (n + 9) at first, as ours is (1 + n) / (10 + n).
        warm_up = {"use_warmup": True, "warmup_gamma": 9.0, "warmup_power": 1.0}
        self.ema = ModelEmaV3(self.model, decay=how.ema_decay, **warm_up) if how.ema_decay else None
        self.steps = 0
        smoothing = getattr(config.task, "label_smoothing", 0.0)
        self.mixup = None
        if self.stage.mixup_alpha:
            self.mixup = Mixup(self.stage.mixup_alpha, label_smoothing=smoothing, num_classes=num_classes)
        self.loss = SoftTargetCrossEntropy() if self.mixup else LabelSmoothingCrossEntropy(smoothing)
        self.train_loader, self.val_loader = self._loader(train, True), self._loader(val, False)

    def _loader(self, split: Split, training: bool) -> Any:
        from timm.data import create_dataset, create_loader

        from datasets.transforms.decode import takes_whole

        config, stage, data = self.config, self.stage, self.config.data
        size = stage.image_size if training else config.trainer.eval_size(stage)
        batch = stage.batch_size if training else config.trainer.eval_batch_size
        dataset = create_dataset(
            "wds/", root="/", split=f"{'::'.join(split.paths)}|{split.samples}", is_training=training, batch_size=batch,
            seed=config.seed,
        )  # fmt: skip
        whole = takes_whole(size, data.eval_crop)
        magnitude = stage.randaugment_magnitude
        return create_loader(
            dataset, (3, size, size), batch, is_training=training, use_prefetcher=False, color_jitter=0.0,
            scale=stage.crop_area or data.crop_area, ratio=data.crop_ratio, hflip=0.5 if data.flip else 0.0,
            auto_augment=_rand_augment(magnitude, data.randaugment_layers) if magnitude else None,
            mean=(config.trainer.pixel_mean / 255,) * 3, std=(config.trainer.pixel_std / 255,) * 3,
            crop_pct=1.0 if whole else size / (size + 32), crop_mode="squash" if whole else "center",
            num_workers=data.num_loaders, persistent_workers=data.num_loaders > 0, device=self.device,
        )  # fmt: skip

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield training batches without end; each pass over the shards has another order of them."""
        for epoch in count():
            self.train_loader.dataset.set_epoch(epoch)
            yield from self.train_loader

    def step(self, images: Any, labels: Any, rate: float) -> None:
        """Take one step."""
        import torch
        from torch.nn.utils import clip_grad_norm_

        from pipeline.training.evaluation import autocast

        images = images.to(self.device, memory_format=torch.channels_last)
        labels = labels.to(self.device)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with autocast(self.config.trainer, self.device):
            logits = self.model(images)
        self.loss(logits.float(), labels).backward()
        if self.config.optimizer.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.ema is not None:
            self.ema.update(self.model, self.steps)

    def wait(self) -> None:
        """Wait for the steps that a GPU has been given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def accuracy(self) -> float:
        """Return the moving average's accuracy over the validation images."""
        import torch

        from pipeline.training.evaluation import autocast

        model = self.ema.module if self.ema is not None else self.model
        model.eval()
        right = count = 0
        with torch.inference_mode(), autocast(self.config.trainer, self.device):
            for images, labels in self.val_loader:
                found = model(images.to(self.device)).argmax(1).cpu()
                right += int((found == labels).sum())
                count += len(labels)
        return right / count
