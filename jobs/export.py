"""Export a checkpoint's model as ONNX or `.pt2`: `python -m jobs.export CHECKPOINT --to model.onnx`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.common.cli import parse, run_main

if TYPE_CHECKING:
    import numpy as np

    from pipeline.inference.trained_model import SavedModel

TOLERANCE = 1e-4
"""Largest difference of logits that is rounding, as a share of the largest logit (measured: up to 1e-6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the export."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run's name or folder (for its latest valid checkpoint), or FOLDER/checkpoints/CURSOR; local or s3://."""
    to: str
    """File to write: NAME.onnx or NAME.pt2 (torch.export). It is written only if its results match the checkpoint's."""
    data: str = ""
    """Shards whose first images are used to compare the two models; empty: the run's own validation data."""
    storage: str = "runs"
    """Folder or s3://BUCKET/PREFIX of the runs, if the model is given by a run's name."""
    best: bool = False
    """Use the run's best checkpoint instead of its latest one."""
    image_size: int = 0
    """Image size in pixels; 0: that of the run's own evaluations."""
    ema: bool = True
    """Export the weights' moving average, if the run kept one; with --no-ema, the weights themselves."""
    reestimate_bn: int = 0
    """Training samples from which BatchNorm's running statistics are estimated again, at this image size and with the
    evaluation's crop, rounded up to whole batches; 0: the checkpoint's statistics."""
    train_data: str = ""
    """With --reestimate-bn: training shards; empty: those of the run."""
    compared: int = 8
    """Number of images with which the two models are compared."""
    register: str = ""
    """Also log the ONNX file with the run in MLflow, and register it as a new version of the model of this name."""
    tracking_uri: str = ""
    """With --register: URI of the MLflow server; empty: the one that recorded the run."""

    def __post_init__(self) -> None:
        if not self.to.endswith((".onnx", ".pt2")):
            raise ValueError(f"to is {self.to!r}: name a file that ends in .onnx or .pt2")
        if self.register and not self.to.endswith(".onnx"):
            raise ValueError(f"to is {self.to!r}: only .onnx files are registered in MLflow")
        if self.reestimate_bn < 0:
            raise ValueError(f"reestimate_bn is {self.reestimate_bn}: it must be 0 (off) or more")
        if self.compared < 1:
            raise ValueError(f"compared is {self.compared}: at least 1 image must be compared")


def main(argv: Sequence[str]) -> int:
    """Write under a temporary name, compare, and only then rename."""
    options = parse(
        Options, argv, prog="python -m jobs.export", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    import torch

    from pipeline.inference.norm_statistics import reestimate_saved
    from pipeline.inference.trained_model import find_run, open_saved

    saved = open_saved(
        find_run(options.checkpoint, options.storage),
        ema=options.ema,
        best=options.best,
        image_size=options.image_size,
    )
    for line in saved.notes:
        print(f"note: {line}")
    if options.reestimate_bn:
        reestimate_saved(
            saved,
            options.reestimate_bn,
            url=options.train_data,
            device=torch.device("cpu"),
            batch_size=64,
            loader_workers=0,
        )
    images = _real_images(saved, options)
    difference = export_compared(saved, Path(options.to), images)
    size = Path(options.to).stat().st_size / 1e6
    print(
        f"{options.to}: {saved.model_config.name} at {saved.preprocessing.image_size} px, "
        f"{len(saved.task.classes)} classes, {size:.1f} MB\n"
        f"its logits on {len(images)} real images match {saved.uri} to {difference:.1e} of the largest"
    )
    if options.register:
        version = _register(saved, options)
        print(f"MLflow: logged with its run, and registered as version {version} of {options.register!r}")
    return 0


def _register(saved: SavedModel, options: Options) -> str:
    from infra.tracking.config import TrackingConfig
    from infra.tracking.registry import register_onnx
    from pipeline.checkpoint.resume import locate

    recorded = saved.config["tracking"]
    return register_onnx(
        Path(options.to),
        TrackingConfig(uri=options.tracking_uri or recorded["uri"], experiment=recorded["experiment"]).absolute(),
        locate(saved.uri)[0],
        name=options.register,
        image_size=saved.preprocessing.image_size,
        num_outputs=saved.task.num_outputs,
        step=saved.state.cursor,
        dense=saved.kind == "segmentation",
    )


def export_compared(saved: SavedModel, path: Path, images: np.ndarray) -> float:
    """Write a model file that was run on `images`, uint8 [B, 3, S, S]; return its logits' largest difference.

    Raises:
        ExportError: it doesn't run, or gives other logits; then there is no new file.
    """
    from pipeline.inference.exported_model import ExportError, largest_difference, open_exported, write_exported

    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} doesn't exist; make it first")
    unproven = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write_exported(saved, unproven)
        _, run = open_exported(unproven)
        difference = largest_difference(saved, run, images)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{path} is not written: the exported model's logits differ from the checkpoint's by {difference:.1e} "
                f"of the largest; {TOLERANCE:.0e} would be rounding"
            )
        unproven.replace(path)
    finally:
        unproven.unlink(missing_ok=True)
    return difference


def _real_images(saved: SavedModel, options: Options) -> np.ndarray:
    """Return images of the data as the model takes them, uint8 [B, 3, S, S].

    Raises:
        ValueError: the data can't be read from here.
    """
    import numpy as np

    from datasets.config import DataConfig
    from datasets.errors import DataError
    from datasets.loading.loader import build_eval_loader

    url = options.data or saved.config["data"]["val"]
    data = DataConfig(val=url, eval_crop=saved.preprocessing.eval_crop, loader_workers=0)
    size = saved.preprocessing.image_size
    try:
        loader = build_eval_loader(data, image_size=size, batch_size=options.compared, rank=0, world_size=1)
        batch = next(iter(loader))
    except DataError as error:
        raise DataError(f"{error}; name shards for the comparison with --data") from error
    return np.ascontiguousarray(batch.images.numpy())


if __name__ == "__main__":
    run_main(main)
