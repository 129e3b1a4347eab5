"""Pictures of steps, as files that MLflow's page shows with a slider (as `MlflowClient.log_image` names them)."""

from __future__ import annotations

import io
import re
import uuid

from infra.tracking.outbox import File

SHORT_SIDE = 256
"""Pixels of the copy that the page shows."""


def image_files(key: str, png: bytes, step: int) -> list[File]:
    """Return a picture and its smaller copy. Named by key and step alone: recorded again, they take their places.

    `log_image` itself has the time and a random number in the name, and would add a picture at each restart.
    """
    name = re.sub(r"[^\w\-. ]", "~", key, flags=re.ASCII)
    stem = f"images/{name}+step+{step}+timestamp+{step}+{uuid.uuid5(uuid.NAMESPACE_URL, f'{name}+{step}')}"
    return [File(f"{stem}.png", png), File(f"{stem}+compressed.webp", _small(png))]


def _small(png: bytes) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((SHORT_SIDE, SHORT_SIDE))
        image.save(target, "WEBP")
    return target.getvalue()
