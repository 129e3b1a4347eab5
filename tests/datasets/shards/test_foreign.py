"""Shards that others wrote: their labels, their images, their damage, and mixes of several sets."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from datasets.checks import check_data
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batch import Batch
from datasets.loading.batch_sampler import TrainSteps
from datasets.loading.loader import build_eval_loader
from datasets.loading.sample_order import sample_order
from datasets.shards.describe import write_manifest
from datasets.shards.resolve import load_manifest
from datasets.transforms.decode import decode_crop
from datasets.transforms.pixels import read_header
from jobs.index import main as index
from tests.support.batches import train_batches
from tests.support.shards import image_of, png, write_damaged_shards, write_shards, write_tar


def jpeg(number: int, **options: Any) -> bytes:
    return simplejpeg.encode_jpeg(image_of(1, number), **options)


def config(train: Path | str, **changes: Any) -> DataConfig:
    values = {"num_lanes": 4, "block_size": 4, "window_blocks": 2, "loader_workers": 0}
    return DataConfig(train=str(train), val=str(train), **(values | changes))


def labels(folder: Path) -> list[int]:
    loader = build_eval_loader(config(folder), image_size=32, batch_size=8, rank=0, world_size=1)
    return [label for batch in loader for label in batch.labels.tolist()]


def test_text_and_json_labels_become_classes_and_every_image_format_is_read(tmp_path: Path) -> None:
    webp = io.BytesIO()
    Image.fromarray(image_of(1, 2)).save(webp, "WEBP")
    members = {
        "v1.0/one.jpg": jpeg(0),
        "v1.0/one.txt": b"zebra\n",
        "v1.0/two.JPEG": jpeg(1),
        "v1.0/two.json": json.dumps({"label": "cat", "url": "x"}).encode(),
        "three.webp": webp.getvalue(),
        "three.json": b'"dog"',
        "four.png": png(image_of(1, 3)),
        "four.txt": b"cat",
    }
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"five.jpg": jpeg(4), "five.txt": b"dog"})
    assert index([str(tmp_path)]) == 0
    manifest = load_manifest(str(tmp_path))
    assert (manifest.classes, manifest.class_counts) == (("cat", "dog", "zebra"), (2, 2, 1))
    assert manifest.shard_counts.tolist() == [4, 1]
    assert labels(tmp_path) == [2, 0, 1, 0, 1]


def test_a_class_map_and_another_json_field(tmp_path: Path) -> None:
    rows = [("a", "cat"), ("b", "dog"), ("c", 2)]
    members = {}
    for key, name in rows:
        members |= {f"{key}.jpg": jpeg(1), f"{key}.json": json.dumps({"kind": name}).encode()}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"some labels are numbers and some are names"):
        index([str(tmp_path), "--json-field", "kind"])
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"dog": 0, "bird": 2, "cat": 1}))
    assert index([str(tmp_path), "--json-field", "kind", "--classes", str(names)]) == 0
    assert load_manifest(str(tmp_path)).classes == ("dog", "cat", "bird")
    assert labels(tmp_path) == [1, 0, 2]
    names.write_text('["dog"]')
    with pytest.raises(DataError, match=r"a\.tar: label 'cat' of sample 0 is none of the classes"):
        index([str(tmp_path), "--json-field", "kind", "--classes", str(names)])
    with pytest.raises(DataError, match=r"--classes cat,dog,cat: 'cat' is there twice"):
        index([str(tmp_path), "--json-field", "kind", "--classes", "cat,dog,cat"])
    names.write_text('{"dog": 0, "cat": 5}')
    with pytest.raises(DataError, match=r"the class numbers must be 0 to 1, each once"):
        index([str(tmp_path), "--json-field", "kind", "--classes", str(names)])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"label": 1.5}', r"is 1\.5; it must be a class name or a number"), (b"{", "not readable JSON")],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_tar(tmp_path / "a.tar", {"k.jpg": jpeg(1), "k.json": content})
    with pytest.raises(DataError, match=rf"a\.tar: the label of sample 'k' .*{message}"):
        index([str(tmp_path)])


def test_an_index_that_cannot_be_written_is_said_before_the_pass(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0), "a.cls": b"no number"})
    with pytest.raises(DataError, match=r"cannot write .*a\.tar: .* not a folder; .*; name another folder with --out"):
        index([str(tmp_path), "--out", str(tmp_path / "a.tar")])


def test_indexing_again_keeps_the_class_names_of_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0), "a.cls": b"0", "b.jpg": jpeg(1), "b.cls": b"1"})
    write_manifest(tmp_path, ["a.tar"], classes=["cat", "dog"])
    assert index([str(tmp_path)]) == 0
    assert load_manifest(str(tmp_path)).classes == ("cat", "dog")
    assert index([str(tmp_path), "--out", str(tmp_path / "twice"), "--classes", "crane,crane"]) == 0
    assert load_manifest(str(tmp_path / "twice")).classes == ("crane", "crane")  # as ImageNet has it
    write_tar(tmp_path / "b.tar", {"c.jpg": jpeg(0), "c.cls": b"2"})
    assert index([str(tmp_path)]) == 0
    assert load_manifest(str(tmp_path)).classes == ("0", "1", "2")


def test_shards_in_several_folders_share_an_index_elsewhere(tmp_path: Path) -> None:
    one, two = write_shards(tmp_path / "one", [5]), write_shards(tmp_path / "two", [6])
    with pytest.raises(DataError, match=r"the shards are in 2 folders; .*--out"):
        index([f"{one}::{two}"])
    with pytest.raises(
        DataError, match=r"one/part-000000\.tar and .*two/part-000000\.tar both have a sample '0000000\d'"
    ):
        index([f"{one}::{two}", "--out", str(tmp_path / "both")])
    assert index([f"{one}::{two}", "--out", str(tmp_path / "both"), "--repeated-keys"]) == 0
    assert load_manifest(str(tmp_path / "both")).shard_counts.tolist() == [5, 6]


# Mixes -------------------------------------------------------------------------------------------------------------


def train(config: DataConfig, *, cursor: int = 0, stop: int, **changes: Any) -> list[Batch]:
    return list(train_batches(config, cursor=cursor, stop=stop, **{"seed": 3, **changes}))


def test_a_mix_takes_its_shares_in_every_epoch_and_all_samples_equally_in_the_long_run(tmp_path: Path) -> None:
    one, two = write_shards(tmp_path / "one", [24]), write_shards(tmp_path / "two", [16])
    mix = config(f"{one}::{two}", train_weights=(0.5, 2.0))
    manifest, _ = check_data(replace(mix, val=str(one)), batch_sizes=[8], worker_counts=[1, 2])
    assert manifest.shard_counts.tolist() == [12, 32]
    order = sample_order(mix, manifest, seed=3)
    assert order.samples_per_epoch == 44

    def ids(rank: int, world_size: int) -> np.ndarray:
        steps = TrainSteps(order, manifest, batch_size=4, cursor=0, stop=88, rank=rank, world_size=world_size)
        return np.concatenate([step.ids for step in steps])

    first, second = (np.bincount(part, minlength=40) for part in np.split(ids(0, 1), 2))
    assert first.tolist() == [1] * 12 + [0] * 12 + [2] * 16
    assert second.tolist() == [0] * 12 + [1] * 12 + [2] * 16
    assert sorted(np.concatenate([ids(0, 2), ids(1, 2)])) == sorted(ids(0, 1))
    assert sum(len(batch.labels) for batch in train(mix, stop=88, batch_size=4)) == 88
    with pytest.raises(ValueError, match=r"data\.train_weights is \(0\.5, -1\.0\)"):
        replace(mix, train_weights=(0.5, -1.0))


# Damage ------------------------------------------------------------------------------------------------------------


def test_a_damaged_sample_is_replaced_the_same_way_by_any_worker_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = config(write_damaged_shards(tmp_path / "d", {7, 40}))
    alone = train(data, stop=56)
    assert sum(len(batch.damaged) for batch in alone) == 2
    lines = [sample.message for batch in alone for sample in batch.damaged]
    assert sorted(line.split(": ")[1] for line in lines) == ["sample '0007'", "sample '0040'"]
    assert [record.message for record in caplog.records] == [f"corrupt sample: {line}" for line in lines]
    for variant in (replace(data, loader_workers=2), data):
        again = train(variant, stop=56)
        assert all(torch.equal(a.images, b.images) for a, b in zip(alone, again, strict=True))
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(alone, again, strict=True))
    ranks = [train(data, stop=56, rank=rank, world_size=2) for rank in range(2)]
    for step, whole in enumerate(alone):
        assert torch.equal(whole.images, torch.cat([batches[step].images for batches in ranks]))
    assert torch.equal(train(data, cursor=32, stop=56)[-1].images, alone[-1].images)


def test_in_evaluation_a_damaged_sample_is_left_out(tmp_path: Path) -> None:
    data = config(write_damaged_shards(tmp_path / "d", {7, 40}))
    batches = list(build_eval_loader(data, image_size=32, batch_size=16, rank=0, world_size=1))
    assert [len(batch.images) for batch in batches] == [15, 16, 15, 12]
    seen = [index for batch in batches for index in batch.stream_index.tolist()]
    assert seen == [number for number in range(60) if number not in (7, 40)]
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert [len(batch.damaged) for batch in batches] == [1, 0, 1, 0]


def test_a_chunk_of_an_evaluation_without_any_image_is_empty(tmp_path: Path) -> None:
    data = config(write_damaged_shards(tmp_path / "d", set(range(16, 32))))
    batches = list(build_eval_loader(data, image_size=32, batch_size=16, rank=0, world_size=1))
    assert [len(batch.images) for batch in batches] == [16, 0, 16, 12]
    assert [len(batch.damaged) for batch in batches] == [0, 16, 0, 0]


def test_a_damaged_sample_has_one_message_in_any_process(tmp_path: Path) -> None:
    """Pillow says where in memory the data are."""
    write_tar(tmp_path / "a.tar", {"a.tif": b"II*\0" + bytes(40), "a.cls": b"0", "b.jpg": jpeg(1), "b.cls": b"0"})
    write_manifest(tmp_path, ["a.tar"], classes=["a"])
    messages = set()
    for workers in (0, 1, 1):
        data = config(tmp_path, loader_workers=workers)
        kept = [bytes(number) for number in range(workers * 1000)]  # other addresses
        for batch in build_eval_loader(data, image_size=32, batch_size=2, rank=0, world_size=1):
            messages |= {sample.message for sample in batch.damaged}
        del kept
    assert len(messages) == 1
    assert "0x" not in messages.pop()


def test_large_images_are_damage_not_a_bomb() -> None:
    small = png(image_of(0, 0))
    with pytest.raises(ValueError, match=r"an image of 64x48 pixels; data\.max_pixels allows 3000"):
        read_header(small, max_pixels=3000)
    for side, message in ((12_000, "an image of 12000x12000 pixels"), (60_000, "exceeds limit")):
        head = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        with pytest.raises(ValueError, match=message):
            read_header(small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:])


# Odd images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_seen_as_their_exif_orientation_shows_them(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(image_of(1, 4)).save(stream, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    data = stream.getvalue()
    shown = np.asarray(ImageOps.exif_transpose(Image.open(stream)), dtype=int)
    header = read_header(data)
    assert (header.height, header.width) == shown.shape[:2]
    assert header.is_plain_jpeg == (kind == "JPEG")
    got = decode_crop(data, header, (5, 10, 36, 36), (36, 36)).astype(int)
    assert np.abs(got - shown[5:41, 10:46]).mean() < 1


def test_sixteen_bits_and_transparency() -> None:
    deep = Image.fromarray((image_of(1, 4)[..., 0].astype(np.uint16) << 8) + 77)
    stream = io.BytesIO()
    deep.save(stream, "PNG")
    got = decode_crop(stream.getvalue(), read_header(stream.getvalue()), (0, 0, 48, 48), (48, 48))
    assert np.array_equal(got[..., 1], image_of(1, 4)[:, :48, 0])
    alpha = np.dstack([image_of(1, 4), np.full((48, 64), 255, dtype=np.uint8)])
    alpha[:, :32, 3] = 0
    data = png(alpha)
    got = decode_crop(data, read_header(data), (0, 0, 48, 64), (48, 48))
    assert (got[:, :20] == 255).all()
    assert not (got[:, 30:] == 255).all()


def test_a_tar_cut_short_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"k.jpg": jpeg(1), "k.cls": b"0", "l.jpg": jpeg(2)})
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:2000])
    with pytest.raises(
        DataError, match=r"a\.tar: not a readable tar \(it ends within member 'k\.jpg', before byte 2560\)"
    ):
        index([str(tmp_path)])
    assert tarfile.is_tarfile(tmp_path / "a.tar")
