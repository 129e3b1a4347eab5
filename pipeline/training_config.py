"""How a run is trained and saved: the configs of `pipeline.training` and `pipeline.checkpoint`.

They are here, away from the code that they configure, because that code imports PyTorch, which takes seconds, and a
command line must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.schedule.stages import TrainingStage

TIMM_OPTIMIZERS = ("lamb", "lion", "muon")
"""Optimizers that come with timm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer, learning-rate schedule and moving average. The defaults are EfficientNetV2's."""

    optimizer: Literal["rmsprop", "sgd", "adamw", "lamb", "lion", "muon"] = "rmsprop"
    """Update rule: TensorFlow's RMSProp, SGD with Nesterov momentum, AdamW, or timm's Lamb, Lion or Muon. Muon is for
    the convolutions and linear layers; AdamW updates the classifier, biases and norms, at the same rate."""
    lr: float = 0.256
    """Peak learning rate: an absolute one, whatever the stages' batch sizes, unless `lr_per_batch` is given."""
    lr_per_batch: int = 0
    """The global batch that `lr` is for: a stage's rate is `lr` times its batch size over this one (linear scaling),
    and `adaptive.batch_lr_rule` does nothing. 0: the rate doesn't follow the batch."""
    momentum: float = 0.9
    """Momentum of RMSProp, SGD and Muon; the first beta of AdamW, Lamb and Lion."""
    decay: float = 0.9
    """RMSProp's decay of the mean square; not used by the others."""
    eps: float = 1e-3
    """Added inside RMSProp's root; not used by the others."""
    weight_decay: float = 1e-5
    """L2 weight decay; decoupled in AdamW, Lion and Muon. Not applied to biases, normalization parameters and position
    embeddings."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it, for fine-tuning: the head has the whole rate,
    the stem the lowest. 1: the same rate for all."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate grows: linearly from 0; in the one-cycle schedule by a cosine from lr / 25."""
    schedule: Literal["exponential", "cosine", "linear", "polynomial", "one-cycle", "wsd", "constant"] = "exponential"
    """The schedule after the warm-up. exponential: decay by `decay_factor`; cosine, linear, polynomial (see `power`):
    from the peak to 0 at the run's end; one-cycle: PyTorch's OneCycleLR, by a cosine to lr / 250,000; wsd
    (warm-up-stable-decay): constant, then linearly to 0 over the run's last `decay_share`; constant. Time that is
    added to a run stretches what is left of its schedule; with wsd, before the decay begins, the rate stays as it
    is."""
    power: float = 2.0
    """Polynomial schedule: the rate is the peak times the remaining share of the run to this power."""
    decay_share: float = 0.2
    """wsd: share of the run, at its end, in which the rate decays."""
    decay_factor: float = 0.97
    """Exponential schedule: the factor per `decay_epochs`."""
    decay_epochs: float = 2.4
    """Exponential schedule: epochs per factor, counted from the start of the run including the warm-up (as in the
    authors' code)."""
    staircase: bool = True
    """Exponential schedule: decay in steps instead of smoothly."""
    min_lr: float = 0.0
    """Lower limit of the learning rate, except in the warm-up."""
    ema_decay: float = 0.9999
    """Decay of the weights' moving average per step of the last stage's batch, ramped up as min(decay, (1 + n) / (10 +
    n)); 0: no average. With other batches it is decay ** (batch / last batch): the same horizon in samples."""
    clip_norm: float | None = None
    """Gradients are clipped to this global norm; None: no clipping."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_per_batch", "eps", "weight_decay", "warmup_epochs", "min_lr"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        for name in ("momentum", "decay", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor={self.decay_factor}: must be in (0, 1]")
        for name in ("layer_decay", "decay_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in (0, 1]")
        for name in ("power", "decay_epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm}: must be above 0, or None for no clipping")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """How steps are run."""

    micro_batch_size: int = 0
    """Samples per forward pass on one worker; gradients are accumulated to the stage's batch. 0: the worker's whole
    share of the batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast: to bf16 on a GPU that supports it (auto), never (fp32), always (bf16)."""
    probe_memory: Literal["auto", "always", "never"] = "auto"
    """Whether to search for the largest micro-batch that fits into memory before the first step, if `micro_batch_size`
    is 0; each stage's micro-batch follows from it. auto: on a GPU."""
    sync_batchnorm: Literal["all"] | int = 0
    """Workers over whose samples BatchNorm normalizes together in training: groups of so many, or `all`. A group must
    divide the number of workers. 0: each worker over its own micro-batch; the running statistics, which evaluations and
    checkpoints use, are the mean over all workers in any case."""
    deterministic: bool = False
    """On a GPU: use deterministic algorithms only, so that the same seed gives the same bits and a resumed run those of
    one that wasn't stopped; False: the fastest algorithms. A model with an operation that has no such algorithm is
    refused with its name. A CPU's bits are the same in any case."""
    compile: bool = False
    """Whether to use torch.compile, for training and evaluations: one compilation for each image size of either, all
    before the first step."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """torch.compile's mode. reduce-overhead: CUDA graphs, for batches so small that launching their kernels takes
    longer than computing them; max-autotune: these, and the fastest of several kernels for each product, which takes
    longer to compile."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: for large images, less
    memory for a second forward pass a step, with the same gradients. Not together with `compile`."""
    eval_every_epochs: float = 1.0
    """Epochs between two evaluations. Each stage also ends with one."""
    eval_scale: float = 1.0
    """Evaluation image size as a multiple of the stage's training size (the paper's S: 384/300)."""
    eval_batch_size: int = 64
    """Samples per evaluation batch on one worker."""
    reestimate_bn: int = 0
    """Training samples from which BatchNorm's running statistics are estimated again at the run's end, before its last
    evaluation and checkpoint: at the evaluation's size, with its crop. They are the sample order's first, rounded up to
    whole evaluation batches. 0: off."""
    log_every: int = 10
    """Optimizer steps between two log rows, and between two decision points."""
    profile_steps: int = 0
    """Steps of rank 0 to trace with torch.profiler, soon after its worker group has started; the trace becomes an
    artifact. 0: none. `--profile` is a short form of this flag."""
    pixel_mean: float = 128.0
    """Subtracted from each pixel (0 to 255): inputs are (x - 128) / 128, as in the authors' code."""
    pixel_std: float = 128.0
    """Each pixel is divided by this."""
    channel_mean: tuple[float, ...] = ()
    """Mean of each channel, in the values' own unit, in place of `pixel_mean`. Empty: `pixel_mean` for RGB; for another
    `data.pixel_type` it is estimated once, when the run is submitted, from 256 training images, evenly spaced, and
    recorded as if it had been given."""
    channel_std: tuple[float, ...] = ()
    """Standard deviation of each channel, in place of `pixel_std`; given or estimated together with `channel_mean`."""

    def __post_init__(self) -> None:
        if isinstance(self.sync_batchnorm, int) and self.sync_batchnorm < 0:
            raise ValueError(f"trainer.sync_batchnorm is {self.sync_batchnorm}: it must be all, or 0 (off) or more")
        lows = {"micro_batch_size": 0, "eval_batch_size": 1, "reestimate_bn": 0, "log_every": 1, "profile_steps": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}: it must be at least {low}")
        for name in ("eval_every_epochs", "eval_scale", "pixel_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}: it must be above 0")
        if len(self.channel_mean) != len(self.channel_std):
            raise ValueError(
                f"trainer.channel_mean has {len(self.channel_mean)} numbers and trainer.channel_std "
                f"{len(self.channel_std)}: give both one number a channel, or neither"
            )
        if not all(value > 0 for value in self.channel_std):
            raise ValueError(f"trainer.channel_std is {self.channel_std}: each must be above 0")
        if self.compile and self.checkpoint_activations:
            raise ValueError(
                "trainer.checkpoint_activations and trainer.compile are both True: the compiler decides itself what "
                "to compute again; set one of them to False"
            )

    def check_workers(self, count: int) -> None:
        """Check that so many workers are whole groups for BatchNorm.

        Raises:
            ValueError: they aren't.
        """
        size = self.sync_batchnorm
        if size not in (0, "all") and count % int(size):
            raise ValueError(
                f"trainer.sync_batchnorm is {size}: {count} worker{'s' if count > 1 else ''} can't be cut into groups "
                f"of {size}; take a divisor of {count}, all, or 0 (off)"
            )

    def eval_size(self, stage: TrainingStage) -> int:
        """Return the image size at which a stage is evaluated, in pixels."""
        return stage.image_size if stage.fixres else round(stage.image_size * self.eval_scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay."""

    every_s: float = 300.0
    """Longest time between two checkpoints, in seconds, checked on log steps. 0: no limit."""
    every_epochs: float = 1.0
    """Epochs between two checkpoints; one is also written at each stage's end. 0: no limit."""
    keep: int = 3
    """How many of the latest checkpoints to keep; older ones are deleted once a newer one is complete."""
    best_metric: str = "val/accuracy"
    """Of the checkpoints made at an evaluation, the one with the best value of this metric is kept as well. Empty:
    none. Classification has val/accuracy, top5_accuracy (of more than 5 classes), balanced_accuracy (the mean recall of
    the classes), macro_f1, calibration_error and loss; multi-label map, micro_f1, macro_f1 and loss; segmentation miou,
    iou_CLASS, pixel_accuracy and loss."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which value of `best_metric` is the best."""
    give_up_s: float = 900.0
    """If no checkpoint could be written for this long, in seconds, the run ends, since too much work would be at
    risk."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}: keep at least 1, resuming needs it")
        if not self.give_up_s > 0:
            raise ValueError(f"checkpoint.give_up_s is {self.give_up_s}: it must be above 0")
        for name in ("every_s", "every_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"checkpoint.{name} is {getattr(self, name)}: it must be 0 (off) or more")
