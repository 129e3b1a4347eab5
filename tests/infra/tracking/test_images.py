"""Pictures of steps, named as `MlflowClient.log_image` names them."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from infra.tracking.images import image_files

PAGE = re.compile(r"images/[^/+]+\+step\+\d+\+timestamp\+\d+\+[0-9a-f-]{36}(\+compressed\.webp|\.png)")
"""How MLflow's page takes a name apart."""


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("key", ["samples", "val/mistakes", "Überlänge (1)+2"])
def test_names_are_such_that_the_page_shows_them(key: str) -> None:
    full, small = image_files(key, png(640, 320), 48)
    assert PAGE.fullmatch(full.path)
    assert PAGE.fullmatch(small.path)
    assert Image.open(io.BytesIO(small.content)).size == (256, 128)


def test_a_step_that_is_recorded_again_takes_its_place() -> None:
    first, again, other = (image_files("samples", png(8, 8), step) for step in (48, 48, 96))
    assert [file.path for file in first] == [file.path for file in again]
    assert not {file.path for file in first} & {file.path for file in other}
