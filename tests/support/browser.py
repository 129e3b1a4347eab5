"""A headless Chromium that shows pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


LOADS = 4
"""How often a page is loaded before what it lacks is a failure: on a busy machine its time may run out first."""

WINDOW = "2600,12000"
"""Width and height in pixels: MLflow draws only the charts and columns that are in the window."""


def missing(url: str, folder: Path, *parts: str) -> list[str]:
    """Return which parts (regular expressions) a page doesn't show."""
    lacks = list(parts)
    for _ in range(LOADS):
        shown = page(url, folder)
        lacks = [part for part in parts if not re.search(part, shown)]
        if not lacks:
            break
    return lacks


def page(url: str, folder: Path) -> str:
    """Return the HTML of a page after its scripts have run for 120 s of its own time; `folder` keeps its profile."""
    return _run(folder, WINDOW, "--dump-dom", url)


def keep_picture(url: str, folder: Path, name: str) -> None:
    """Write what a page looks like to NAME.png in the folder that CRESCENDO_SCREENSHOTS names, if it does."""
    if place := os.environ.get("CRESCENDO_SCREENSHOTS"):
        Path(place).mkdir(parents=True, exist_ok=True)
        _run(folder, "2000,2200", f"--screenshot={Path(place) / name}.png", url)


def _run(folder: Path, window: str, *arguments: str) -> str:
    assert CHROMIUM, "no Chromium (Debian: chromium)"
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    size = [f"--user-data-dir={folder}", f"--window-size={window}", "--virtual-time-budget=120000"]
    shown = subprocess.run(
        [CHROMIUM, *switches, *size, *arguments], capture_output=True, text=True, timeout=240, check=True
    )
    return shown.stdout
