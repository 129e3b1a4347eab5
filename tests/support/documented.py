"""The commands that the documents tell a reader to run, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(python3? -m (?:jobs\.|infra\.|tests\.chaos)(?!\{)|mlflow |ray (?=[a-z]))")


def documented() -> dict[str, list[Path]]:
    """Every `python -m jobs.*`, `python -m infra.*`, `make`, `mlflow` and `ray` command, and the documents with it."""
    found: dict[str, list[Path]] = {}
    for path in DOCS:
        for text in _code(path.read_text()):
            for command in _commands(text):
                places = found.setdefault(command, [])
                if path not in places:
                    places.append(path)
    return found


def _code(document: str) -> list[str]:
    """The lines of code blocks, then the pieces of code within sentences, each as one line."""
    document = re.sub(r"^```.*?^```", "", document, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    blocks = re.findall(r"^    +(?:\$ )?(.*)$", document, re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^    .*$", "", document, flags=re.MULTILINE))
    return [" ".join(text.split()) for text in blocks + inline]


def _commands(text: str) -> list[str]:
    if text.startswith("make "):
        return re.findall(r"make [a-z][a-z0-9-]*", text)
    return [text.partition(" #")[0].strip()] if PROGRAM.match(text) else []
