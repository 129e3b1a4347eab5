"""The code that Ray copies to the nodes: the project's modules, whatever else lies in the checkout."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.cluster.logs import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
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
    """Return the modules of the project's packages, relative to `root`.

    A folder without `__init__.py` is no package, so data and environments inside of one are left out, too.
    """
    return [path.relative_to(root) for package in PACKAGES for path in _modules(root / package)]


def _modules(package: Path) -> Iterator[Path]:
    for path in sorted(package.iterdir()):
        if path.suffix == ".py" and path.is_file():
            yield path
        elif (path / "__init__.py").is_file():
            yield from _modules(path)
