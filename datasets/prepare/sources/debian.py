"""Files from Debian packages, without root: `apt-get download` with separate lists, then `dpkg -x`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from datasets.errors import DataError


def fetch_packages(packages: Sequence[str], cache: Path) -> dict[str, Path]:
    """Unpack packages into `cache`, downloading those that are not there yet; returns the folder of each.

    A package that this distribution does not have is left out.

    Raises:
        DataError: no apt here, or nothing could be fetched.
    """
    unpacked = {package: cache / "packages" / package for package in packages}
    missing = [package for package, folder in unpacked.items() if not folder.is_dir()]
    if missing:
        _require_tools()
        apt = _Apt(cache / "apt")
        known = apt.known(missing)
        apt.download(known)
        for package in known:
            _unpack(next((cache / "apt").glob(f"{package}_*.deb")), unpacked[package])
        shutil.rmtree(cache / "apt")
    return {package: folder for package, folder in unpacked.items() if folder.is_dir()}


class _Apt:
    """apt with its lists and cache in a folder of ours: needs no rights and changes nothing of the system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state/lists/partial").mkdir(parents=True, exist_ok=True)
        (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        self.options = [
            *("-o", f"Dir::State={folder / 'state'}"),
            *("-o", f"Dir::Cache={folder / 'cache'}"),
            *("-o", "Dir::State::status=/var/lib/dpkg/status"),
            *("-o", "APT::Sandbox::User="),
        ]

    def known(self, packages: Sequence[str]) -> list[str]:
        """Return those that the distribution has."""
        self._run("apt-get", "update")
        names = set(self._run("apt-cache", "pkgnames").split())
        return [package for package in packages if package in names]

    def download(self, packages: Sequence[str]) -> None:
        """Put the packages' files into the folder."""
        if packages:
            self._run("apt-get", "download", *packages)

    def _run(self, tool: str, *arguments: str) -> str:
        command = [tool, *self.options, "-q", *arguments]
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise DataError(f"`{tool} {arguments[0]}` failed ({reason}); check the network, or pass --font-folder DIR")
        return done.stdout


def _require_tools() -> None:
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"fonts are fetched with apt, but there is no {tool} here; pass --font-folder DIR instead")


def _unpack(package: Path, folder: Path) -> None:
    """Unpack to a temporary name and rename, so that an existing folder is complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    done = subprocess.run(["dpkg", "-x", package, temporary], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"{package}: can't be unpacked ({done.stderr.strip()[-200:]}); remove it and run again")
    temporary.replace(folder)
