"""A run whose network has rows of its own is used as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import simplejpeg

from jobs import evaluate, export, predict
from tests.support.runs import train_with_rows
from tests.support.shards import image_of


def test_a_run_with_rows_of_its_own_is_evaluated_exported_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_with_rows(tmp_path)
    data = ["--data", str(run.data / "val"), "--loader-workers", "0", "--json", "-"]
    assert evaluate.main([str(run.folder), *data]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 30
    assert export.main([str(run.folder), "--to", str(tmp_path / "model.onnx")]) == 0
    image = tmp_path / "0.jpg"
    image.write_bytes(simplejpeg.encode_jpeg(image_of(0, 0)))
    capsys.readouterr()
    answers = []
    for model in (run.folder, tmp_path / "model.onnx"):
        assert predict.main([str(model), str(image), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["labels"])
    assert [label["label"] for label in answers[0]] == [label["label"] for label in answers[1]]
