"""Heights and widths of images: the one place that knows what an image size means where images are not square."""

from __future__ import annotations

Shape = tuple[int, int]
"""height, width in pixels"""


def image_shape(image_size: int, aspect_ratio: float) -> Shape:
    """Return height and width: the short side is the image size, the long one follows from the ratio, rounded.

    A user who wants 480x360 px asks for 360 at 4 / 3, and larger sizes are never smaller images. What a model needs of
    a side, such as a multiple of its stride, `model.checks` asks of both.

    Args:
        image_size: short side in pixels.
        aspect_ratio: width / height.
    """
    if aspect_ratio < 1:
        return round(image_size / aspect_ratio), image_size
    return image_size, round(image_size * aspect_ratio)


def format_size(image_size: int, aspect_ratio: float) -> str:
    """Return `128`, or of images that are not square width x height: `171x128`."""
    height, width = image_shape(image_size, aspect_ratio)
    return str(height) if height == width else f"{width}x{height}"
