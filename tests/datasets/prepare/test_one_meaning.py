"""One meaning: prepared, indexed, trained on, evaluated and predicted, a file is the same pixels."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from datasets.config import DataConfig
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader
from datasets.loading.reader import SampleReader
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.resolve import load_manifest
from datasets.transforms.pixels import decode_rgb
from jobs.index import main as index
from pipeline.inference.preprocessing import Preprocessing
from tests.support.batches import train_batches
from tests.support.odd_images import OddImage, odd_images

SIDE = 24
ODD = list(odd_images(SIDE, SIDE))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All odd images as training and as validation data, by `prepare`."""
    base = tmp_path_factory.mktemp("odd")
    plain = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "teal").save(plain, "PNG")
    for split in ("train", "val"):
        for name, data in [*((f"odd/{image.name}", image.data) for image in ODD), (f"plain/{split}.png", plain)]:
            path = base / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.getvalue() + split.encode())
    prepare(ImageFolder(path=base / "images"), base / "out", WriterConfig(workers=2))
    return base / "out"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in a tar that somebody else wrote, by `index`."""
    folder = tmp_path_factory.mktemp("indexed")
    with wds.TarWriter(str(folder / "a.tar")) as tar:
        for number, image in enumerate(ODD):
            tar.write({"__key__": f"{number:04d}", image.name.rpartition(".")[2]: image.data, "cls": 0})
    assert index([str(folder)]) == 0
    return folder


def config(folder: Path, val: Path) -> DataConfig:
    return DataConfig(
        train=str(folder),
        val=str(val),
        num_lanes=1,
        loader_workers=0,
        eval_crop="whole",
        crop_area=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=False,
    )


def pictures(batches: Iterable[Batch]) -> set[bytes]:
    """Return all images as bytes: uint8 [H, W, 3] each."""
    found: set[bytes] = set()
    for batch in batches:
        assert not batch.damaged
        found |= {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in batch.images}
    return found


def expected() -> set[bytes]:
    return {decode_rgb(image.data).tobytes() for image in ODD}


def test_prepare_keeps_the_bytes(prepared: Path) -> None:
    reader = SampleReader(load_manifest(str(prepared / "val")))
    written = {sample.data for sample in reader.read_each(range(reader.manifest.num_samples))}
    assert written >= {image.data for image in ODD}
    names = {name.rpartition(".")[2] for name in wds_names(prepared / "val")}
    assert names == {"jpg", "png", "webp", "tif", "gif", "bmp", "avif", "jp2", "ppm", "cls"}


def wds_names(folder: Path) -> list[str]:
    import tarfile

    return [name for path in folder.glob("*.tar") for name in tarfile.open(path).getnames()]


def test_training_evaluation_and_prediction_see_what_the_decoder_says(prepared: Path, indexed: Path) -> None:
    want = expected()
    assert len(want) > 30
    for train, val in ((prepared / "train", prepared / "val"), (indexed, indexed)):
        data = config(train, val)
        count = load_manifest(str(train)).num_samples
        trained = train_batches(data, image_size=SIDE, batch_size=1, stop=count)
        assert pictures(trained) >= want
        assert pictures(build_eval_loader(data, image_size=SIDE, batch_size=8, rank=0, world_size=1)) >= want
    view = Preprocessing(image_size=SIDE, eval_crop="whole", pixel_mean=0, pixel_std=1)
    assert {view.pixels(image.data)[0].tobytes() for image in ODD} == want


@pytest.mark.parametrize("image", [image for image in ODD if not image.tolerance], ids=lambda image: image.name)
def test_a_prediction_sees_what_is_shown(image: OddImage) -> None:
    view = Preprocessing(image_size=SIDE, eval_crop="whole", pixel_mean=0, pixel_std=1)
    assert np.array_equal(view.pixels(image.data)[0], image.shown)
