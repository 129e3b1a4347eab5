"""What is copied to the nodes: the code, whatever else lies in the checkout."""

from __future__ import annotations

import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infra.cluster.code_package import ROOT, code_files, packed_code
from infra.cluster.logs import PACKAGES

BIG = 600 * 2**20
"""Bytes: Ray refuses an archive of more than 512 MB."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code, with what users leave in a checkout; big files are sparse."""
    root = tmp_path / "checkout"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name)
    for place in (".", "imagenet", "datasets/imagenet/n01440764", ".git/objects", ".cache", "jobs/recipes/.ipynb"):
        (root / place).mkdir(parents=True, exist_ok=True)
        for file in ("big.tar", "big.py"):
            with (root / place / file).open("wb") as stream:
                stream.truncate(BIG if place != "." or file == "big.tar" else 1)
    (root / "model" / "weights.safetensors").write_bytes(bytes(2**20))
    venv = root / "jobs" / "venv" / "lib" / "package"
    venv.mkdir(parents=True)
    (venv / "__init__.py").touch()
    (root / "jobs" / "recipes" / "mine.py").write_text("MINE = 1\n")
    (root / "jobs" / "gone.py").symlink_to("nowhere")
    return root


def test_only_modules_of_the_projects_packages_are_copied(checkout: Path) -> None:
    assert {*code_files(checkout)} - {*code_files(ROOT)} == {Path("jobs/recipes/mine.py")}
    assert {*code_files(ROOT)} - {*code_files(checkout)} == set()
    with packed_code(checkout) as archive:
        assert Path(archive).stat().st_size < 8 * 2**20
        assert sorted(zipfile.ZipFile(archive).namelist()) == sorted(map(str, code_files(checkout)))
    assert not Path(archive).exists()


def test_bytecode_goes_along_if_it_fits_the_unpacked_files(tmp_path: Path) -> None:
    module = tmp_path / "model" / "__init__.py"
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for mode, shipped in (("timestamp", False), ("checked-hash", True)):
        py_compile.compile(
            str(module), invalidation_mode=py_compile.PycInvalidationMode[mode.replace("-", "_").upper()]
        )
        assert any(path.suffix == ".pyc" for path in code_files(tmp_path)) == shipped


def test_every_module_under_version_control_is_copied() -> None:
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {path for path in tracked.stdout.split() if path.endswith(".py")} <= {*map(str, code_files(ROOT))}


def test_rays_own_submission_leaves_out_what_lies_beside_the_code(checkout: Path) -> None:
    """`ray job submit --working-dir .`, as docs/cluster.md has it: `.rayignore` is an allow-list, too."""
    from ray._private.runtime_env.packaging import create_package

    shutil.copy(ROOT / ".rayignore", checkout)
    shutil.rmtree(checkout / "datasets" / "imagenet")  # inside of the packages it does not look
    shutil.rmtree(checkout / "jobs" / "recipes" / ".ipynb")
    package = checkout.parent / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=[])
    assert package.stat().st_size < 8 * 2**20
    assert {*map(str, code_files(checkout))} <= {*zipfile.ZipFile(package).namelist()}


def test_the_same_code_is_the_same_archive(checkout: Path) -> None:
    """Ray names it by its bytes: another name is another environment, for which no spare process is ready."""
    with packed_code(checkout) as one:
        first = Path(one).read_bytes()
    for path in code_files(checkout):
        (checkout / path).touch()
    with packed_code(checkout) as other:
        assert Path(other).read_bytes() == first


def test_the_copy_runs(tmp_path: Path) -> None:
    with packed_code() as archive:
        zipfile.ZipFile(archive).extractall(tmp_path)
    program = "import jobs.train, pipeline.run.launch, infra.spot_watch; print(jobs.train.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "jobs" / "train.py")
