from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jobs.submit
from infra.storage.open import open_storage
from jobs.common.extension import ExtendFlags, extended
from jobs.recipes.catalog import RECIPES
from pipeline.checkpoint.format import write_checkpoint
from tests.support.snapshots import snapshot


def test_extend_is_another_run_that_starts_from_the_end_of_the_first() -> None:
    config = replace(RECIPES["demo"](), name="mine", storage="s3://bucket/runs/")
    longer = extended(config, 2.5)
    assert (longer.name, longer.resume_from) == ("mine-plus-2.5", "s3://bucket/runs/mine")
    assert longer.stages[:-1] == config.stages[:-1]
    assert longer.stages[-1] == replace(config.stages[-1], epochs=config.stages[-1].epochs + 2.5)
    with pytest.raises(ValueError, match="leave out --resume-from"):
        extended(longer, 1)


@pytest.mark.parametrize("epochs", [-1, float("nan"), float("inf"), 1e300])
def test_what_is_no_number_of_epochs_is_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match="it must be 0"):
        ExtendFlags(extend=epochs)


@pytest.mark.parametrize("there", [(), ("mine",), ("mine-plus-2",)])
def test_a_run_that_is_not_there_is_said_by_the_flags_that_named_it(there: tuple[str, ...], tmp_path: Path) -> None:
    for name in there:  # its own checkpoints go on when those of the first are gone
        write_checkpoint(open_storage(tmp_path / name), snapshot(24))
    config = replace(RECIPES["demo"](), name="mine", storage=str(tmp_path))
    flags = ExtendFlags(extend=2)
    if there:
        assert flags.of(config) == extended(config, 2)
        return
    with pytest.raises(
        ValueError, match=r"^--extend 2: no run 'mine' to extend, .*; name a finished run by --name"
    ) as said:
        flags.of(config)
    assert f" {tmp_path}/mine holds no valid checkpoint" in str(said.value)
    assert "resume" not in str(said.value)
    assert "\n" not in str(said.value)
    assert list(tmp_path.iterdir()) == []


FLAGS = ("--name", "mine", "--storage", "/shared/runs", "--data.train", "/shared/train", "--data.val", "/shared/val")


def test_a_submission_extends_the_run_on_the_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted: list[tuple[str, str]] = []

    def submit(client: Any, entrypoint: str, *, name: str, **_: Any) -> str:
        submitted.append((entrypoint, name))
        return "job"

    monkeypatch.setattr(jobs.submit, "open_client", lambda dashboard: None)
    monkeypatch.setattr(jobs.submit, "submit", submit)
    monkeypatch.setattr(jobs.submit, "job_page", lambda client, job: "")
    flags = [*FLAGS, "--tracking.uri", "http://mlflow:5000"]
    assert jobs.submit.main(["demo", "--extend", "2.5", *flags, "--detach"]) == 0
    assert jobs.submit.main(["demo", *flags, "--detach"]) == 0
    (longer, name), (plain, own) = submitted
    assert (name, own) == ("mine-plus-2.5", "mine")
    assert "mine-plus-2.5   /shared/runs/mine-plus-2.5" in capsys.readouterr().out
    assert shlex.split(plain) == ["python", "-m", "jobs.train", "demo", *flags]
    assert shlex.split(longer) == [*shlex.split(plain), "--extend", "2.5"]
    with pytest.raises(ValueError, match="leave out --resume-from"):
        jobs.submit.main(["demo", "--extend", "1", *flags, "--resume-from", "/shared/runs/other", "--detach"])
    with pytest.raises(ValueError, match="extend is -1: it must be 0"):
        jobs.submit.main(["demo", "--extend", "-1", *flags, "--detach"])
