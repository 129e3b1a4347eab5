from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.shards.tar_walk import FILE, TarWalk
from tests.support.tars import Formats

NAMES = st.from_regex(r"([a-zäß.]{1,60}/){0,3}[a-z0-9é]{1,40}\.[a-z]{1,5}", fullmatch=True)


@pytest.mark.parametrize("format", Formats)
@given(name=NAMES, data=st.binary(max_size=1500), mode=st.integers(0, 0o7777), uid=st.integers(0, 2**21 - 1))
def test_headers_are_read_as_tarfile_reads_them(format: int, name: str, data: bytes, mode: int, uid: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid, info.uname = len(data), mode, uid, "ä"
        tar.addfile(info, io.BytesIO(data))
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        known = tar.getmembers()[0]
    assert [tuple(member) for member in TarWalk(stream)] == [(known.name, FILE, known.offset_data, known.size)]


@pytest.mark.parametrize(
    "size", ["00000000003", "          3\0", "000000000003", "3\0          ", "\x80" + "\0" * 10 + "\3"]
)
def test_a_size_in_any_notation_is_the_one_that_tarfile_reads(size: str) -> None:
    head = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    head[124:136] = size.encode("latin-1").ljust(12, b"\0")
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    data = bytes(head) + b"abc".ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmembers()[0].size == 3
    assert [tuple(member) for member in TarWalk(io.BytesIO(data))] == [("a.jpg", FILE, 512, 3)]
