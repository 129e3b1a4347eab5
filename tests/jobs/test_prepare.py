from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from datasets.config import DataConfig
from datasets.errors import DataAwayError, DataError
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.shards.resolve import load_manifest
from jobs import index as index_job
from jobs import prepare as prepare_job
from jobs.index import main as index
from tests.support.batches import train_batches
from tests.support.commands import exit_code
from tests.support.commands import prepare as main

ROOT = Path(__file__).resolve().parents[2]
# Free fonts that come with a dependency, so that the test needs no network.
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def arguments(out: Path) -> list[str]:
    images = ["--families", "4", "--train-images", "120", "--val-images", "10", "--size", "96"]
    return ["fonts", "--font-folder", str(FONTS), "--out", str(out), *images, "--samples-per-shard", "40"]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.prepare", *arguments(out)]


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.rglob("*.tar"))}


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def kill_after(out: Path, shards: int) -> set[str]:
    """Run the command, SIGKILL it once so many shards are finished, and return these; its children must end too."""
    process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(out.rglob("*.tar"))) >= shards or process.poll() is not None)
        workers = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert workers
    wait_until(lambda: not any(alive(worker) for worker in workers))
    return set(digests(out))


def test_killed_with_sigkill_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    kept = kill_after(tmp_path / "killed", shards=3)
    assert not (tmp_path / "killed" / "train" / "manifest.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.tar")}
    for out in ("killed", "whole"):
        assert main(arguments(tmp_path / out)) == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.tar")}
    assert len(kept) >= 3
    assert {name: again[name] for name in kept} == times
    assert load_manifest(str(tmp_path / "killed" / "train")).num_samples == 480


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_interrupted_it_says_how_to_go_on(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """Service managers and `timeout` send SIGTERM to all processes at once."""
    process = subprocess.Popen(
        command(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: list(tmp_path.rglob("*.tar")) or process.poll() is not None)
    workers = children(process.pid)
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (
        130,
        "interrupted; what is finished is kept: run the same command again to resume\n",
    )
    assert workers
    assert not any(alive(worker) for worker in workers)


def test_elpv_is_written_with_its_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["elpv", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in output
    assert "1970 images of 2 classes" in output
    train, val = (load_manifest(str(tmp_path / split)) for split in ("train", "val"))
    assert (train.class_counts, val.class_counts) == ((1353, 617), (450, 204))
    assert train.source["licence"] == "CC BY-NC-SA 4.0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["image-folder", "/no/such/folder"], "error: /no/such/folder: no such folder"),
        (["image-folder", "{tmp}/in"], "no class folders in it"),
        (["image-folder", "{tmp}/in/file"], "in/file: a file; name its folder"),
        (["masks", "{tmp}/in/file", "--classes", "x,y"], "in/file: a file; name its folder"),
        (["fonts", "--font-folder", "{tmp}"], "has only 0 fonts"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("no folder")
    assert main([*(argument.format(tmp=tmp_path) for argument in given), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["elpv", "--out", str(tmp_path / "file" / "out")]) == 2
    error = f"error: {tmp_path}/file/out: no folder can be made there (Not a directory); use another --out\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["image-folder", "images", "--val-share", "2"], "error: --val-share is 2.0; it must be"),
        (["fonts", "--text-size", "40", "20"], "error: --text-size is 40 20 px; it must be"),
        (["fonts", "--samples-per-shard", "0"], "error: --samples-per-shard is 0; it must be"),
        (["fonts", "--colour", "red"], "--colour"),
        (["fonts", "--also-short-side", "64,5"], "error: --also-short-side is 64,5 px; each must be"),
        (["photos"], "'photos' is no source (did you mean fonts?); there are image-folder, csv, parquet, masks,"),
        (["foldr", "images"], "'foldr' is no source (did you mean image-folder?); there are"),
        (["--workers", "2"], "no source is named; there are image-folder"),
        ([], "no source is named; there are image-folder"),
        (["image-folder"], "missing: PATH; python -m jobs.prepare"),
        (["image-folder", "images", "--split", "foo"], "--split: 'foo' is not one of train, val, test"),
        (["image-folder", ""], "error: PATH: it is empty; name what is meant"),
        (["csv", ""], "error: TABLE: it is empty"),
        (["parquet", ""], "error: FOLDER: it is empty"),
        (["masks", "images", "--masks", "", "--classes", "x,y"], "error: --masks: it is empty"),
        (["masks", "images", "--val-images=", "--classes", "x,y"], "error: --val-images: it is empty"),
        (["fonts", "--font-cache", ""], "error: --font-cache: it is empty"),
        (["fonts", "--noise", "nan"], "error: --noise is nan: it must be a finite number"),
    ],
)
def test_options_that_cannot_be_end_with_exit_code_2(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_key_in_an_address_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image-folder", "images", "--out", "s3://bucket/set?X-Amz-Signature=0a1b2c"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out: 's3://bucket/set?X-Amz-Signature=***")
    assert "0a1b2c" not in error


@pytest.mark.parametrize("job", ["prepare", "index"])
def test_storage_that_is_away_for_now_is_told_from_what_is_to_be_cured(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(folder: str) -> None:
        raise DataAwayError(f"cannot write {folder}: no answer")

    for module in (prepare_job, index_job):
        monkeypatch.setattr(module, "check_writable", away)
    if job == "prepare":
        code = main(["image-folder", str(tmp_path), "--out", "s3://bucket/set"])
    else:
        code = exit_code(index, [str(tmp_path), "--out", "s3://bucket/set"])
    assert code == os.EX_TEMPFAIL
    assert capsys.readouterr().err.startswith("error: cannot write s3://bucket/set: no answer")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("gs://bucket/prefix", "--out: gs:// is not supported; give a folder, file:///folder or s3://bucket/prefix"),
        ("s3://", "--out: 's3://' is not an S3 URI"),
        ("", "--out: the URI is empty; give a folder"),
    ],
)
@pytest.mark.parametrize("job", ["prepare", "index"])
def test_an_out_that_cannot_be_is_refused_before_anything_is_read(
    job: str,
    out: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if job == "prepare":
        assert main(["image-folder", "no-such-folder", "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    elif out:  # without one it is the shards' own folder
        with pytest.raises(DataError, match=re.escape(message)):
            index(["no-such-folder", "--out", out])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["photos", "photos/train", "photos/shards", "link/shards", "."])
def test_an_out_in_the_folder_that_is_read_is_refused(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` would write into the folder `train` that is read: the images are there themselves."""
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("photos/a", "photos/b", "train/a", "train/b", "shards/a")):
        (tmp_path / place).mkdir(parents=True)
        for name in "01":
            Image.new("RGB", (8, 8), (number, number, int(name))).save(tmp_path / place / f"{name}.png")
    (tmp_path / "link").symlink_to("photos")
    read = "train" if out == "." else "photos"
    assert main(["image-folder", read, "--out", out]) == 2
    error = capsys.readouterr().err
    assert f"lies in the folder {read}, which is read; choose an --out outside it" in error
    assert main(["masks", "shards", "--masks", read, "--classes", "x,y", "--out", out]) == 2
    assert f"lies in the folder {read}" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_an_out_beside_the_split_folders_is_taken(tmp_path: Path) -> None:
    """As in data/imagenet/train, val and shards: there it is neither a class nor a split."""
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / place / "0.png")
    for _ in range(2):
        assert main(["image-folder", str(tmp_path), "--out", str(tmp_path / "shards"), "--workers", "1"]) == 0
        (tmp_path / "shards/val/manifest.json").unlink()  # as an interrupted call leaves it
    manifest = load_manifest(str(tmp_path / "shards/train"))
    assert manifest.classes == ("a", "b")
    assert ImageFolder(path=tmp_path).plan().left_out == {}


@pytest.mark.parametrize("out", ["", "test", "testing"])
def test_an_out_that_would_be_a_split_the_next_time_is_refused(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, place in enumerate(("training/a", "training/b", "validation/a", "validation/b")):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / place / "0.png")
    before = sorted(tmp_path.rglob("*"))
    assert main(["image-folder", str(tmp_path), "--out", str(tmp_path / out)]) == 2
    assert "which is read; choose an --out outside it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_out_as_file_url_is_that_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (ord(name[0]), int(name[2]), 0)).save(tmp_path / "in" / f"{name}.png")
    assert main(["image-folder", str(tmp_path / "in"), "--out", f"file://{tmp_path}/out", "--workers", "1"]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"{tmp_path}/out/train: 2 images of 2 classes in 1 shard, \d+\.\d kB\n", output)
    assert main(["image-folder", str(tmp_path / "in"), "--out", f"{tmp_path}/out", "--workers", "1"]) == 0
    (tmp_path / "in").rename(tmp_path / "before")
    (tmp_path / "before/a").rename(tmp_path / "before/c")
    assert main(["image-folder", str(tmp_path / "before"), "--out", f"{tmp_path}/out", "--workers", "1"]) == 2
    assert "its images have changed since, or they are of another source" in capsys.readouterr().err
    assert load_manifest(str(tmp_path / "out/train")).num_samples == 2


def test_smaller_copies_and_s3(tmp_path: Path, s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--families", "2", "--train-images", "10", "--val-images", "3", "--size", "96"]
    given = ["fonts", "--font-folder", str(FONTS), "--out", f"{s3_uri}/fonts/", *images]
    assert main([*given, "--also-short-side", "64,32"]) == 0
    assert f"{s3_uri}/fonts/train: 20 images of 2 classes in 1 shard" in capsys.readouterr().out
    manifest = load_manifest(f"{s3_uri}/fonts/train")
    assert manifest.copies == (32, 64)
    data = DataConfig(
        train=f"{s3_uri}/fonts/train", val=f"{s3_uri}/fonts/val", cache_dir=str(tmp_path), num_lanes=4, loader_workers=0
    )
    loader = train_batches(data, stop=16)
    assert loader.short_side == 64
    assert [len(batch.labels) for batch in loader] == [8, 8]
