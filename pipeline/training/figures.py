"""Images of samples, predictions and the confusion matrix as PNG, made with Pillow from plain tensors."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from datasets.transforms.formats import IGNORED

GAP, LINE, SHOWN = 4, 16, 12
_SQUARES, _SQUARES_A_ROW = 24, 6
_BACKGROUND, _TEXT, _WRONG = (255, 255, 255), (20, 20, 20), (190, 20, 20)
_NOTHING = (0, 0, 0)
_Line = tuple[str, tuple[int, int, int]]
"""Text, and its colour."""


def palette(count: int) -> np.ndarray:
    """Return `count` colours that are easy to tell apart, uint8 [256, 3]; the others, such as 255, are black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    hues = max(1, min(count, 8))  # as far apart as so few can be; then again in between, lighter or darker
    for index in range(count):
        round_, step = divmod(index, hues)
        hue = (0.6 + (step + round_ / 2) / hues) % 1
        red, green, blue = colorsys.hls_to_rgb(hue, (0.45, 0.65, 0.3)[round_ % 3], 0.7)
        colours[index] = round(red * 255), round(green * 255), round(blue * 255)
    return colours


def coloured_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Return classes [H, W] as colours, uint8 [H, W, 3]."""
    return palette(num_classes)[mask]


def indexed_mask(mask: np.ndarray, num_classes: int) -> bytes:
    """Return classes, uint8 [H, W], as a palette PNG: its values are the classes, its colours show them."""
    image = Image.fromarray(mask)
    image.putpalette(palette(num_classes).ravel().tolist())
    return as_png(image)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return how an image [H, W, C] is shown, uint8 [H, W, 3]: RGB of 8 bits as it is.

    Of other values the first three channels are shown as red, green and blue, the first as grey where there are fewer,
    each stretched from its 2nd percentile to its 98th.
    """
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return pixels
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    low, high = np.percentile(shown, (2, 98), axis=(0, 1))
    stretched = (shown - low) / np.maximum(high - low, 1e-12) * 255
    return np.asarray(stretched.clip(0, 255).astype(np.uint8))


def segmented_images(images: Tensor, truth: Tensor, predicted: Tensor, classes: Sequence[str]) -> bytes:
    """Return columns of image, truth and prediction ([B, C, H, W], [B, H, W] twice), with a legend."""
    ignored = truth[:SHOWN] == IGNORED
    shown = predicted[:SHOWN].to("cpu", torch.uint8).masked_fill(ignored.cpu(), IGNORED).numpy()
    photographs = images[:SHOWN].cpu().permute(0, 2, 3, 1).numpy()
    masks = truth[:SHOWN].cpu().to(torch.uint8).numpy()
    height, width = photographs.shape[1:3]
    down, right, margin = height + GAP, width + GAP, 80
    sheet = Image.new("RGB", (margin + right * len(photographs), 3 * down + 2 * LINE), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, title in enumerate(("image", "truth", "prediction")):
        draw.text((GAP, row * down + height // 2), title, _TEXT, font)
    for column in range(len(photographs)):
        cells = as_rgb(photographs[column]), *(coloured_mask(mask[column], len(classes)) for mask in (masks, shown))
        for row, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (margin + column * right, row * down))
    x = margin
    for name, colour in zip(classes, palette(len(classes)), strict=False):
        draw.rectangle((x, 3 * down + 4, x + 10, 3 * down + 14), tuple(colour.tolist()))
        draw.text((x + 14, 3 * down + 2), name, _TEXT, font)
        x += 24 + round(draw.textlength(name, font))
    return as_png(sheet)


def labelled_images(images: Tensor, truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> bytes:
    """Return images [B, C, H, W] with their class below, in red with the prediction where that is wrong."""
    captions = [
        [(classes[label], _TEXT), *([(f"not {classes[guess]}", _WRONG)] if guess != label else [])]
        for label, guess in zip(truth, predicted, strict=True)
    ]
    return _captioned(images, captions, lines=2)


def multilabelled_images(images: Tensor, truth: Tensor, predicted: Tensor, classes: Sequence[str]) -> bytes:
    """Return images [B, C, H, W] with their classes below, and in red those missed and those not there.

    `truth` and `predicted` are bool [B, K], on the host.
    """

    def names(which: Tensor) -> str:
        return ", ".join(classes[index] for index in which.nonzero()[:, 0].tolist())

    captions: list[list[_Line]] = []
    for there, guess in zip(truth, predicted, strict=True):
        missed, wrong = names(there & ~guess), names(guess & ~there)
        lines = [(names(there) or "none", _TEXT)]
        lines += [(f"missed {missed}", _WRONG)] if missed else []
        lines += [(f"not {wrong}", _WRONG)] if wrong else []
        captions.append(lines)
    return _captioned(images, captions, lines=3)


def _captioned(images: Tensor, captions: Sequence[Sequence[_Line]], *, lines: int) -> bytes:
    """Return the first of the images in a row, with up to `lines` lines of text below each."""
    photographs = images[:SHOWN].cpu().permute(0, 2, 3, 1).numpy()
    height, width = photographs.shape[1], max(photographs.shape[2], 96) + GAP
    sheet = Image.new("RGB", (width * len(photographs), height + lines * LINE + GAP), _BACKGROUND)
    font = ImageFont.load_default(11)
    for column, (photograph, caption) in enumerate(zip(photographs, captions, strict=False)):
        cell = Image.new("RGB", (width - GAP, height + lines * LINE), _BACKGROUND)  # cuts off what is too long
        cell.paste(Image.fromarray(as_rgb(photograph)), (0, 0))
        draw = ImageDraw.Draw(cell)
        for row, (text, colour) in enumerate(caption):
            draw.text((0, height + 2 + row * LINE), text, colour, font)
        sheet.paste(cell, (column * width, 0))
    return as_png(sheet)


def valued_images(images: Tensor, truth: Tensor, values: Tensor, names: Sequence[str]) -> bytes:
    """Return images (uint8 [B, 3, H, W]) with their numbers below, and what was estimated of them.

    `truth` and `values` are float [B, N], on the host.
    """
    photographs = images[:SHOWN].cpu().permute(0, 2, 3, 1).numpy()
    height, lines = photographs.shape[1], min(len(names), 6)
    width = max(photographs.shape[2], 110) + GAP
    sheet = Image.new("RGB", (width * len(photographs), height + lines * LINE + GAP), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, (photograph, numbers, guesses) in enumerate(zip(photographs, truth, values, strict=False)):
        sheet.paste(Image.fromarray(as_rgb(photograph)), (column * width, 0))
        for row, (name, number, guess) in enumerate(
            zip(names[:lines], numbers.tolist(), guesses.tolist(), strict=False)
        ):
            place = (column * width, height + 2 + row * LINE)
            draw.text(place, f"{name[:8]} {number:.4g}, not {guess:.4g}"[:28], _TEXT, font)
    return as_png(sheet)


def scatter_picture(truth: Tensor, values: Tensor, names: Sequence[str]) -> bytes:
    """Return a square for each target, with a point for each image: its number to the right, the estimate upwards.

    On the line from corner to corner they are equal. `truth` and `values` are float [images, N], on the host. Of many
    targets the first 24 are shown, in rows of 6.
    """
    side, margin = 320, 3 * LINE
    font = ImageFont.load_default(12)
    shown = names[:_SQUARES]
    rows = -(-len(shown) // _SQUARES_A_ROW)
    width, below = min(len(shown), _SQUARES_A_ROW) * (side + margin) + GAP, LINE * (len(names) > len(shown))
    sheet = Image.new("RGB", (width, rows * (side + margin) + below), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if below:
        draw.text((GAP, rows * (side + margin)), f"the first {len(shown)} of {len(names)} targets", _TEXT, font)
    for index, name in enumerate(shown):
        row, column = divmod(index, _SQUARES_A_ROW)
        left, top = GAP + column * (side + margin), row * (side + margin)
        pairs = torch.stack([truth[:, index], values[:, index]], 1).double()
        low, high = float(pairs.min()), float(pairs.max())
        places = ((pairs - low) / max(high - low, 1e-12) * (side - 1)).tolist()
        bottom = top + side
        draw.rectangle((left, top, left + side, bottom), outline=_TEXT)
        draw.line((left, bottom, left + side, top), fill=_WRONG)
        for x, y in places:
            draw.ellipse((left + x - 2, bottom - y - 2, left + x + 2, bottom - y + 2), fill=(37, 99, 235))
        draw.text((left, bottom + 2), f"{low:.4g}", _TEXT, font)
        draw.text((left + side, bottom + 2), f"{high:.4g}", _TEXT, font, anchor="ra")
        draw.text((left, bottom + 2 + LINE), f"{name}: truth to the right, estimate upwards", _TEXT, font)
    return as_png(sheet)


def confusion_picture(counts: Tensor, classes: Sequence[str]) -> bytes:
    """Return the confusion matrix [truth, prediction] as shares of each row; with numbers up to 20 classes."""
    shares = (counts.double() / counts.sum(1, keepdim=True).clamp_min(1)).cpu().numpy()
    cell = 44 if len(classes) <= 20 else max(2, 900 // len(classes))
    font = ImageFont.load_default(12)
    named = len(classes) <= 40
    margin = round(max(font.getlength(name) for name in classes)) + 12 if named else 24
    side = margin + cell * len(classes)
    caption = "rows: truth, columns: prediction"
    width = max(side, round(font.getlength(caption)) + GAP)
    sheet = Image.new("RGB", (width + GAP, side + LINE), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(classes):
        if named:
            draw.text((4, row * cell + cell / 2 - 7), name, _TEXT, font)
        for column, share in enumerate(shares[row]):
            left, top, shade = margin + column * cell, row * cell, 255 - round(200 * float(share))
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), (shade, shade, 255))
            if len(classes) <= 20:
                ink = _BACKGROUND if share > 0.6 else _TEXT
                draw.text((left + 6, top + cell / 2 - 7), f"{100 * share:.0f}%", ink, font)
    if named:
        _write_upright(sheet, classes, margin, cell, font)
    draw.text((4, side), caption, _TEXT, font)
    return as_png(sheet)


def _write_upright(
    sheet: Image.Image,
    classes: Sequence[str],
    margin: int,
    cell: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for column, name in enumerate(classes):
        label = Image.new("RGB", (margin, LINE), _BACKGROUND)
        ImageDraw.Draw(label).text((margin - 4, 1), name, _TEXT, font, anchor="ra")
        sheet.paste(label.rotate(90, expand=True), (margin + column * cell + cell // 2 - 8, cell * len(classes) + 2))


def as_png(image: Image.Image) -> bytes:
    """Encode as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def grid_png(images: Tensor) -> bytes:
    """Return a PNG of the first 32 of normalized images [B, C, H, W]: the first three channels, or the first."""
    from PIL import Image

    shown = images[:32, : 3 if images.shape[1] >= 3 else 1].float().cpu()
    low, high = shown.amin(), shown.amax()
    grid = make_grid((shown - low) / (high - low).clamp_min(1e-6), nrow=8, padding=2)
    out = io.BytesIO()
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(out, format="PNG")
    return out.getvalue()
