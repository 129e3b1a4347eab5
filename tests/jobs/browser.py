"""A headless Chromium that shows pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page(url: str, folder: Path) -> str:
    """Return the HTML of a page after its scripts have run for 30 s of its own time; `folder` keeps its profile."""
    assert CHROMIUM
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    size = [f"--user-data-dir={folder}", "--window-size=1400,3000", "--virtual-time-budget=30000"]
    shown = subprocess.run(
        [CHROMIUM, *switches, *size, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    return shown.stdout
