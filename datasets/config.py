"""`DataConfig`: what a run reads and how an image becomes a sample, with its checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from datasets.errors import DataError
from datasets.transforms.formats import PixelFormat, PixelType
from datasets.transforms.shape import Shape, image_shape

EvalCrop = Literal["central_below_320", "central", "whole"]
FlipOrder = Literal["random", "alternating"]
Sampling = Literal["uniform", "balanced", "sqrt"]
RandAugmentPolicy = Literal["torchvision", "google", "geometric"]
MAX_RATIO = 10.0
"""Of the long side to the short one."""

DEFAULT_LOADERS = 2
"""Loader processes of a worker without a GPU: its own CPU is the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards a run reads, in which order, and how an image becomes a training sample."""

    train: str = "data/train"
    """Training shards: a folder or s3://BUCKET/PREFIX, a brace list such as DIR/train-{000000..000009}.tar, or several
    of these joined by `::`."""
    val: str = "data/val"
    """Validation shards, as `train`."""
    train_weights: tuple[float, ...] = ()
    """Weights of a mixture, one for each part of `train`. An epoch takes round(weight * n) of a shard's n samples, and
    the next epoch continues where this one ended, so over the epochs all are used equally often. Empty: all samples of
    all parts."""
    sampling: Sampling = "uniform"
    """How often an epoch takes the images of each class. uniform: each image once; balanced: all classes equally often;
    sqrt: by the square root of their numbers of images. An epoch has as many images as the data in any case: those of
    rare classes are repeated, and those of frequent ones take turns over the epochs. For one class an image; in
    segmentation an image counts to the rarest class in its mask, which `jobs.prepare` writes beside it."""
    pyramid: bool = True
    """Read the smallest copy of the training shards that a stage's image size allows, if there are copies."""
    cache_dir: str = ""
    """Folder of the node's cache for shards in S3, shared by all its processes and by later runs. Empty: a folder in
    XDG_CACHE_HOME; `none`: no cache, every image is a ranged read from S3."""
    cache_gb: float = 100.0
    """Size limit of the cache, in GB (10^9 bytes)."""
    num_lanes: int = 12
    """Number of fixed streams that an epoch is divided into. Every worker count must divide it, and it must divide
    every batch size."""
    block_size: int = 256
    """Samples of one shard that stay together when an epoch is permuted: fewer if the dataset is small, more if an
    epoch would have over a million of these blocks."""
    window_blocks: int = 64
    """Blocks that are shuffled together inside a lane."""
    loader_workers: int | None = None
    """Loader processes per training worker; 0: decode in the training process itself. None: one for each CPU of a
    worker with a GPU but one (`cluster.cpus_per_worker`); without a GPU 2."""
    prefetch_batches: int = 3
    """Batches that each loader process keeps ready."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the image's area that a training crop covers. 1 1: the whole image, squeezed into
    the input whatever its shape."""
    aspect_ratio: float = 1.0
    """Width / height of the model's input: 1.333 for street scenes of 480x360, 0.707 for pages. A stage's image size is
    the short side, the long one follows, rounded to a pixel; 1: squares."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop, as multiples of `aspect_ratio`."""
    flip: bool = True
    """Mirror half of the training images horizontally. Turn it off where left and right matter, as in text."""
    flip_order: FlipOrder = "random"
    """Which half that is. random: drawn anew each time an image is used; alternating: drawn for its first use, then the
    other way round each time (arXiv 2404.00498), so that both sides are seen equally often."""
    randaugment_layers: int = 2
    """RandAugment operations per image. The stage sets their magnitude."""
    randaugment_policy: RandAugmentPolicy = "torchvision"
    """RandAugment's operations and what a magnitude means. torchvision: its 14 operations, full range at 10, larger
    magnitudes extrapolate. google: the 16 operations of EfficientNetV2's released code, by its formulas; it translates
    by 10 pixels per unit of magnitude at any image size, so it is for large images. geometric: shears, translations and
    rotation alone, by torchvision's amounts, for pixels of any kind; what comes in from outside is the image's mean."""
    eval_crop: EvalCrop = "central_below_320"
    """The crop for evaluation. central: size / (size + 32) of the largest central part of the `aspect_ratio`, a square
    by default; whole: the whole image, squeezed into the input; central_below_320: central below 320 px, whole from
    there on."""

    pixel_type: PixelType = "rgb"
    """What an image's pixels are. rgb: any image, turned into RGB of 8 bits; uint8, uint16, float32: its values of this
    type as they are stored, in `channels` channels (NPY, TIFF with any number of bands, grey PNG of 16 bits). Images of
    other values count as corrupt. With one of these, `model.in_channels` is `channels`, and the inputs are normalized
    by `trainer.channel_mean` and `channel_std`."""
    channels: int = 3
    """Channels of an image; rgb has 3."""
    max_pixels: int = 80_000_000
    """Largest image to decode, in pixels; a larger one counts as corrupt (it may be a decompression bomb)."""
    max_damaged: float = 0.01
    """Largest share of an epoch's samples, and of the validation set, that may be corrupt; beyond it, and beyond 10
    samples, the run ends with a list of them."""

    def __post_init__(self) -> None:
        for name in ("num_lanes", "block_size", "window_blocks", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        for name, value in {"loader_workers": self.num_loaders, "randaugment_layers": self.randaugment_layers}.items():
            if value < 0:
                raise ValueError(f"data.{name} is {value}; it must be 0 or more")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged is {self.max_damaged}; it must be a share from 0 to 1")
        if self.channels < 1:
            raise ValueError(f"data.channels is {self.channels}; it must be at least 1")
        if self.pixel_type == "rgb" and self.channels != 3:
            raise ValueError(
                f"data.channels is {self.channels} and data.pixel_type rgb, which has 3: name the type of the stored "
                "values, as --data.pixel-type uint16"
            )
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels is {self.max_pixels}; it must be at least 1")
        if not self.cache_gb > 0:
            raise ValueError(f"data.cache_gb is {self.cache_gb}; it must be above 0")
        if any(not weight > 0 for weight in self.train_weights):
            raise ValueError(f"data.train_weights is {self.train_weights}; each must be above 0")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"data.crop_area is {self.crop_area}; it must be two shares with 0 < first <= second <= 1")
        if not 1 / MAX_RATIO <= self.aspect_ratio <= MAX_RATIO:
            raise ValueError(
                f"data.aspect_ratio is {self.aspect_ratio}; it is width / height, from {1 / MAX_RATIO:g} to "
                f"{MAX_RATIO:g}, such as 1.333 for images of 480x360"
            )
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"data.crop_ratio is {self.crop_ratio}; it must be two ratios with 0 < first <= second")

    @property
    def num_loaders(self) -> int:
        """How many loader processes a training worker has, where nobody knows of its GPU."""
        return DEFAULT_LOADERS if self.loader_workers is None else self.loader_workers

    @property
    def pixels(self) -> PixelFormat:
        """What an image's pixels are."""
        return PixelFormat(self.pixel_type, self.channels)

    def shape(self, image_size: int) -> Shape:
        """Return height and width in pixels of the model's input at an image size."""
        return image_shape(image_size, self.aspect_ratio)


def check_divisibility(config: DataConfig, *, batch_sizes: Iterable[int], worker_counts: Iterable[int]) -> None:
    """Check that the workers divide the lanes and the lanes divide every global batch.

    Raises:
        DataError: they don't; names the nearest numbers that do.
    """
    lanes = config.num_lanes
    for batch_size in batch_sizes:
        if batch_size % lanes or batch_size < 1:
            low = batch_size // lanes * lanes
            near = " or ".join(str(size) for size in (low, low + lanes) if size > 0)
            raise DataError(f"batch_size {batch_size} is not a multiple of data.num_lanes={lanes}; nearest: {near}")
    for workers in worker_counts:
        if workers < 1 or lanes % workers:
            allowed = ", ".join(str(count) for count in range(1, lanes + 1) if lanes % count == 0)
            raise DataError(f"{workers} workers can't share data.num_lanes={lanes} equally; use {allowed} workers")
