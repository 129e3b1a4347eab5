"""The code that Ray copies to the nodes: the project's modules and nothing else from the checkout."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path

from infra.cluster.logs import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
_SUFFIXES = (".py", ".jinja")
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file in the archive: Ray names it by its bytes, so the same code is copied to a node once."""


@contextmanager
def packed_code(root: Path = ROOT) -> Iterator[str]:
    """Make an archive of the code in a temporary folder, as a `working_dir` of Ray; yield its path."""
    with tempfile.TemporaryDirectory(prefix="crescendo-code-") as folder:
        path = Path(folder, "code.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in code_files(root):
                entry = zipfile.ZipInfo(name.as_posix(), _TIME)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, (root / name).read_bytes(), zipfile.ZIP_DEFLATED)
        yield str(path)


def code_files(root: Path) -> list[Path]:
    """Return the modules and templates of the project's packages, with their bytecode, relative to `root`.

    A folder without `__init__.py` is no package, so data and environments inside of one are left out, too.
    """
    return [path.relative_to(root) for package in PACKAGES for path in _modules(root / package)]


def _modules(package: Path) -> Iterator[Path]:
    for path in sorted(package.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            yield path
            yield from _bytecode(path)
        elif (path / "__init__.py").is_file():
            yield from _modules(path)


def _bytecode(source: Path) -> Iterator[Path]:
    """Yield a module's bytecode if it is checked by its source's hash, as set-up makes it (PEP 552).

    Without it each process on a node compiles what it imports, wherever Python may not write. Bytecode that is checked
    by its source's time would not fit the files that are unpacked there.
    """
    if source.suffix == ".py" and (path := Path(cache_from_source(str(source)))).is_file():
        with path.open("rb") as file:
            if file.read(8)[4:] == b"\x03\x00\x00\x00":
                yield path
