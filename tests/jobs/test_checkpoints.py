from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.storage.open import open_storage
from jobs.checkpoints import main
from jobs.common.parsing import UsageError
from pipeline.checkpoint.format import write_checkpoint
from tests.support.snapshots import snapshot


def test_checkpoints_are_listed_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(tmp_path / "mine")
    for cursor in (24, 48):
        write_checkpoint(storage, snapshot(cursor))
    assert main(["mine", "--storage", str(tmp_path), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "48" in out
    assert "stages done" in out
    storage.delete("checkpoints/000000000000048/manifest.json")
    assert main(["mine", "--storage", str(tmp_path), "--verify", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["cursor"], row["state"], row["verified"]) for row in rows] == [
        (24, "valid", True),
        (48, "incomplete", False),
    ]
    assert main(["mine", "--storage", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "incomplete" in out
    assert "it is incomplete" in out


def test_a_run_without_checkpoints_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoints"):
        main(["none", "--storage", str(tmp_path)])
