from __future__ import annotations

import io

from PIL import Image

from jobs.recipes.fonts import fonts_progressive
from jobs.recipes.solar_cells import demo_scratch
from pipeline.run.schedule_picture import schedule_picture


def test_a_panel_for_each_value_that_stages_set() -> None:
    pictures = [
        Image.open(io.BytesIO(schedule_picture(recipe().stages))) for recipe in (demo_scratch, fonts_progressive)
    ]
    four, two = (picture.height for picture in pictures)  # fonts: sizes and dropout
    assert four - two == 2 * (70 + 34)
    assert {picture.width for picture in pictures} == {760}
    assert all(len(picture.getcolors(1 << 16) or ()) > 4 for picture in pictures)
