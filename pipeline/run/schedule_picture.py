"""A run's planned schedule as a PNG, for its MLflow page."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.schedule.curves import curves, edges
from pipeline.schedule.stages import TrainingStage
from pipeline.training.figures import as_png

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _GAP = 640, 70, 100, 20, 34
_INK, _GRID, _CURVE, _FILL = (20, 20, 20), (215, 215, 215), (30, 90, 170), (214, 227, 245)


def schedule_picture(stages: Sequence[TrainingStage]) -> bytes:
    """Return a panel for each value that stages set, over epochs: image size, RandAugment, Mixup, CutMix, dropout."""
    found, at = curves(stages), edges(stages)
    size = (_LEFT + _WIDTH + _RIGHT, _GAP + len(found) * (_HEIGHT + _GAP))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    x = [_LEFT + epoch / at[-1] * _WIDTH for epoch in at]
    for index, (name, values) in enumerate(found.items()):
        top = _GAP // 2 + index * (_HEIGHT + _GAP)
        bottom = top + _HEIGHT
        draw.text((8, (top + bottom) / 2 - 8), name, _INK, font)
        y = [bottom - value / max(values) * (_HEIGHT - 16) for value in values]
        for left, right, height in zip(x, x[1:], y, strict=False):
            draw.rectangle((left, height, right, bottom), _FILL)
            draw.line((left, height, right, height), _CURVE, 2)
        _write_values(draw, font, values, x, y)
        draw.line((_LEFT, bottom, _LEFT + _WIDTH, bottom), _INK)
        for left in x:
            draw.line((left, top, left, bottom + 4), _GRID)
    _write_epochs(draw, font, at, x, size[1] - _GAP + _GAP // 4)
    return as_png(sheet)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _write_values(
    draw: ImageDraw.ImageDraw, font: _Font, values: Sequence[float], x: Sequence[float], y: Sequence[float]
) -> None:
    """Write each stage's value above its step, where it is another one and there is room."""
    free, shown = 0.0, ""
    for value, left, height in zip(values, x, y, strict=False):
        text = f"{value:.3g}"
        if text != shown and left >= free:
            draw.text((left + 3, height - 15), text, _INK, font)
            free, shown = left + draw.textlength(text, font) + 6, text


def _write_epochs(draw: ImageDraw.ImageDraw, font: _Font, at: Sequence[float], x: Sequence[float], y: float) -> None:
    draw.text((8, y), "epochs", _INK, font)
    free = 0.0
    for epoch, left in zip(at, x, strict=True):
        if left >= free:
            draw.text((left, y), f"{epoch:.3g}", _INK, font, anchor="ma")
            free = left + draw.textlength(f"{epoch:.3g}", font) + 8
