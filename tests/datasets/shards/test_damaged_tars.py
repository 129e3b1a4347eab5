"""Tars that are not what they seem: whatever is lost is an error that names the byte, or a line that says it."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.shards.resolve import load_manifest
from datasets.shards.tar_index import ShardIndex, key_of, scan_shard
from jobs.index import main as index
from tests.support.tars import Formats, mutated, packed, sample_members, tar_bytes, webdataset_keys

COUNT = 24
VERDICTS = ("refused", "warned", "whole")
LONG = "a-folder-whose-name-is-long/" * 6


def scan(folder: Path, data: bytes, name: str = "a.tar") -> ShardIndex:
    (folder / name).write_bytes(data)
    return scan_shard(RemoteFile(str(folder / name), len(data), ""))


def offset_of(data: bytes, name: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


@pytest.fixture(scope="module")
def whole() -> bytes:
    return tar_bytes(sample_members(COUNT))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut in a header", "cut in data", "joined by cat", "garbage"])
def test_what_would_lose_samples_is_an_error_that_names_shard_and_byte(
    tmp_path: Path, whole: bytes, damage: str, suffix: str
) -> None:
    at = offset_of(whole, "0010.jpg")
    flipped, zeroed = bytearray(whole), bytearray(whole)
    flipped[at + 3] ^= 0xFF
    zeroed[at : at + 1024] = bytes(1024)
    data, message = {
        "flipped": (flipped, rf"no tar header at byte {at} after member '0009\.cls': bad checksum"),
        "zeroed": (zeroed, rf"after zeros from byte {at} on .* byte {at + 1024}"),
        "cut in a header": (whole[: at + 200], rf"no tar header at byte {at} after member '0009\.cls': truncated"),
        "cut in data": (whole[: at + 600], r"it ends within member '0010\.jpg', before byte \d+"),
        "joined by cat": (whole + tar_bytes(sample_members(3, folder="b/")), rf"a member follows at byte {len(whole)}"),
        "garbage": (whole + b"x" * 99, rf"there are other bytes from byte {len(whole)} on"),
    }[damage]
    (tmp_path / f"a{suffix}").write_bytes(packed(bytes(data)) if suffix == ".tar.gz" else data)
    with pytest.raises(DataError, match=rf"a\{suffix}: not a readable tar \(.*{message}.*; write it again"):
        index([str(tmp_path)])


@pytest.mark.parametrize("zeros", [0, 300, 512])
def test_an_end_without_its_marker_is_said(
    tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str], zeros: int
) -> None:
    (tmp_path / "a.tar").write_bytes(whole[: offset_of(whole, "0010.jpg")] + bytes(zeros))
    assert index([str(tmp_path)]) == 0
    assert "a.tar: it" in (out := capsys.readouterr().out)
    assert "it may have been cut off after its last member" in out


def test_members_overwritten_by_zeros_up_to_the_end_are_said(tmp_path: Path) -> None:
    data = tar_bytes(sample_members(200))
    at = offset_of(data, "0020.jpg")
    assert "zero bytes follow its last member" in scan(tmp_path, data[:at] + bytes(len(data) - at)).warning
    assert not scan(tmp_path, data).warning


def test_a_broken_checksum_of_a_compressed_shard_is_an_error(tmp_path: Path, whole: bytes) -> None:
    data = bytearray(packed(whole))
    data[-8] ^= 1
    with pytest.raises(DataError, match=r"a\.tar\.gz: not a readable tar \(CRC check failed"):
        scan(tmp_path, bytes(data), "a.tar.gz")
    with pytest.raises(DataError, match=r"a\.tar: not a readable tar \(it is gzip-compressed; name it \.tar\.gz"):
        scan(tmp_path, packed(whole))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.jpg", "a.cls", "a.jpg", "a.cls"], r"'a\.jpg' occurs twice"),
        (["a.jpg", "a.cls", "a.JPG"], r"'a\.jpg' occurs twice"),
        (
            ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"],
            r"sample 'a' occurs twice, or its members are not adjacent",
        ),
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], r"sample 'a' occurs twice"),
        (["a.v1.jpg", "a.v2.jpg"], r"sample 'a' has no image, only v1\.jpg, v2\.jpg; a key ends at the first dot"),
    ],
)
def test_two_samples_of_one_key_in_a_shard_are_refused(tmp_path: Path, members: list[str], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.tar: .*{message}"):
        scan(tmp_path, tar_bytes([(name, b"0") for name in members]))


def test_a_key_in_two_shards_is_refused_naming_both(tmp_path: Path) -> None:
    for number, folder in enumerate(["x/", "y/", "x/"]):
        members = sample_members(5, folder=folder) if number < 2 else sample_members(9, folder=folder)[8:10]
        (tmp_path / f"s-{number}.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=r"s-0\.tar and .*s-2\.tar both have a sample 'x/0004': .*--repeated-keys"):
        index([str(tmp_path)])
    assert index([str(tmp_path), "--repeated-keys"]) == 0
    assert load_manifest(str(tmp_path)).num_samples == 11


@pytest.mark.parametrize("extension", ["txt", "cls"])
def test_labels_of_one_sample_each_are_refused(tmp_path: Path, extension: str) -> None:
    members = []
    for number in range(150):
        label = f"a photo of thing {number}" if extension == "txt" else str(number)
        members += [(f"{number}.jpg", b"x"), (f"{number}.{extension}", label.encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=r"150 of 150 labels belong to one sample each, such as .*--classes"):
        index([str(tmp_path)])
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"a photo of thing {number}" for number in range(150)))
    assert index([str(tmp_path), "--classes", str(names)]) == 0


def test_every_member_that_is_no_sample_is_counted_by_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))

        add("d", tarfile.DIRTYPE)
        for name in ("d/a", "d/b"):
            add(f"{name}.jpg", data=b"x")
            add(f"{name}.cls", data=b"0")
        add("d/b.png", data=b"y")
        add("d/b.npy", data=b"z")
        add("d/c.jpg", tarfile.LNKTYPE, "d/a.jpg")
        add("d/d.jpg", tarfile.SYMTYPE, "a.jpg")
        add("d/pipe.jpg", tarfile.FIFOTYPE)
        add("d/._a.jpg", data=b"x")
        add("README", data=b"x")
        add("__index__/a.jpg", data=b"x")
        add("d/e.jpg")
    assert index([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" in /")[0] for line in lines if "skipped" in line] == [
        "skipped 1 devices, such as 'd/pipe.jpg'",
        "skipped 1 directories, such as 'd'",
        "skipped 1 files of WebDataset's own (__NAME__), such as '__index__/a.jpg'",
        "skipped 1 files of other extensions, such as 'd/b.npy'",
        "skipped 1 files without an extension, such as 'README'",
        "skipped 1 hard links, such as 'd/c.jpg'",
        "skipped 1 hidden files, such as 'd/._a.jpg'",
        "skipped 1 second images of a sample, such as 'd/b.png'",
        "skipped 1 symbolic links, such as 'd/d.jpg'",
    ]
    assert "1 of 3 samples have no label, such as 'd/e'" in "\n".join(lines)
    assert "1 of 3 samples have an image of 0 bytes, such as 'd/e'" in "\n".join(lines)


@pytest.mark.parametrize("format", Formats)
def test_long_names_are_read_and_told_apart(tmp_path: Path, format: int) -> None:
    folder = LONG[:130] + "/" if format == tarfile.USTAR_FORMAT else LONG * 2
    data = tar_bytes(sample_members(COUNT, folder=folder), format=format)
    assert len(scan(tmp_path, data).rows) == COUNT
    assert webdataset_keys(data) == [f"{folder}{number:04d}" for number in range(COUNT)]
    if format == tarfile.USTAR_FORMAT:  # the prefix of the header belongs to the key
        assert key_of(data[:512]) == f"{folder}0000"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_extended_header_without_its_member_is_an_error(tmp_path: Path, format: int) -> None:
    data = tar_bytes(sample_members(1, folder=LONG), format=format)
    with pytest.raises(DataError, match=r"the member that an extended header describes is not there, at byte 1024"):
        scan(tmp_path, data[:1024] + bytes(5000))
    with pytest.raises(DataError, match=r"two extended headers of one member"):
        scan(tmp_path, data[:1024] + data)


def test_a_sparse_image_is_refused(tmp_path: Path) -> None:
    data = bytearray(tar_bytes([("a.jpg", b"x" * 600)], format=tarfile.GNU_FORMAT))
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(DataError, match=r"a\.tar: member 'a\.jpg' is stored sparse"):
        scan(tmp_path, bytes(data))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.cls", b"9" * 30, r"999; class numbers start at 0 and are below 2\^31"),
        ("a.json", b"[" * 100_000, "not readable JSON"),
        ("a.json", b'{"label": "\\ud800"}', "not text in UTF-8"),
        ("a.json", b'{"label": 4294967296}', "a class name or a number"),
        ("a.txt", bytes(8), "without control characters"),
        ("a.txt", "Käfer".encode("latin-1"), "not text in UTF-8"),
        ("a.txt", b"x" * ((1 << 20) + 1), "in a file of 1048577 bytes"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.tar: the label of sample 'a' is .*{message}"):
        scan(tmp_path, tar_bytes([("a.jpg", b"x"), (name, content)]))


# Any damage ----------------------------------------------------------------------------------------------------------


def check_mutated(folder: Path, seed: int) -> str:
    """Damage a tar and index it: it is refused, or said to be cut off, or what webdataset finds is what is found."""
    draws = random.Random(seed)
    format, compressed = draws.choice(Formats), draws.random() < 0.2
    members = sample_members(COUNT, folder="" if format == tarfile.USTAR_FORMAT else LONG[:112], seed=seed)
    how, data = mutated(tar_bytes(members, format=format), draws)
    name, written = ("a.tar.gz", packed(data)) if compressed else ("a.tar", data)
    if compressed and draws.random() < 0.5:  # the damage is to the compressed file
        how, written = mutated(packed(tar_bytes(members, format=format)), draws)
    try:
        found = scan(folder, written, name)
    except DataError as error:
        return "refused" if f"{folder / name}: " in str(error) and "\n" not in str(error) else str(error)
    if found.warning:
        return "warned"
    assert len(found.rows) + sum(found.skipped.values()) >= COUNT, (seed, how)
    if not compressed:
        assert webdataset_keys(data) == keys_found(data, found.rows), (seed, how)
    return "whole"


def keys_found(data: bytes, rows: np.ndarray) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = {info.offset_data: info.name for info in tar}
    return [names[offset].rpartition(".")[0] for offset in rows["offset"].tolist()]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_damage_loses_a_sample_without_a_word(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    assert check_mutated(tmp_path_factory.getbasetemp(), seed) in VERDICTS


@pytest.mark.soak
def test_five_thousand_damaged_tars(tmp_path: Path) -> None:
    verdicts = [check_mutated(tmp_path, seed) for seed in range(5000)]
    assert set(verdicts) == set(VERDICTS)
    assert min(map(verdicts.count, VERDICTS)) > 50
