"""The flags of jobs that take a checkpoint's model: which one, and how it is made ready."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.inference.trained_model import SavedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which of a run's models to use, and at which size."""

    storage: str = "runs"
    """Folder or s3://BUCKET/PREFIX of the runs, if the model is given by a run's name."""
    best: bool = False
    """Use the run's best checkpoint instead of its latest one."""
    image_size: int = 0
    """Image size in pixels, the short side; 0: that of the run's own evaluations."""
    ema: bool = True
    """Use the weights' moving average, if the run kept one; with --no-ema, the weights themselves."""

    def __post_init__(self) -> None:
        if self.image_size < 0:
            raise ValueError(f"image_size is {self.image_size}: it must be 0 (the run's) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlags(ModelChoice):
    """A checkpoint's model, and with which statistics it is used."""

    reestimate_bn: int = 0
    """Training samples from which BatchNorm's running statistics are estimated again, at this image size and with the
    evaluation's crop, rounded up to whole batches; 0: the checkpoint's statistics."""
    train_data: str = ""
    """Training shards, for what reads them: --reestimate-bn, and an export in int8. Empty: those of the run."""

    def __post_init__(self) -> None:
        ModelChoice.__post_init__(self)  # super() doesn't find the class that slots made anew
        if self.reestimate_bn < 0:
            raise ValueError(f"reestimate_bn is {self.reestimate_bn}: it must be 0 (off) or more")

    def open(self, uri: str) -> SavedModel:
        """Read the model of a checkpoint's or a run's URI."""
        from pipeline.inference.trained_model import open_saved

        return open_saved(uri, ema=self.ema, best=self.best, image_size=self.image_size)

    def reestimate(self, saved: SavedModel, *, device: torch.device, batch_size: int, loader_workers: int) -> None:
        """Estimate the model's statistics again, if that is asked for."""
        from pipeline.inference.norm_statistics import reestimate_saved

        if self.reestimate_bn:
            reestimate_saved(
                saved,
                self.reestimate_bn,
                url=self.train_data,
                device=device,
                batch_size=batch_size,
                loader_workers=loader_workers,
            )
