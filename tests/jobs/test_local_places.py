"""What is written to this machine alone is refused elsewhere, before any work."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs import evaluate, export, predict


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: evaluate.Options(checkpoint="run", data="d", report="s3://b/report"), "--report"),
        (lambda: evaluate.Options(checkpoint="run", data="d", json="gs://b/scores.json"), "--json"),
        (lambda: export.Options(checkpoint="run", to="s3://b/model.onnx"), "--to"),
        (lambda: predict.Options(model="run", images=("a.png",), out="s3://b/masks"), "--out"),
    ],
)
def test_a_place_in_a_cloud_is_refused(make: Callable[[], object], flag: str) -> None:
    with pytest.raises(ValueError, match=f"^{flag} is .*: this is written to a local place"):
        make()


def test_a_table_of_predictions_may_lie_in_s3() -> None:
    predict.Options(model="run", images=("a.png",), out="s3://b/table.parquet")


def test_a_file_url_is_refused_with_the_path_to_give() -> None:
    with pytest.raises(
        ValueError, match=r"^--to is file:///a%20b/m.onnx: .* local place; name it by its path: /a b/m.onnx$"
    ):
        export.Options(checkpoint="run", to="file:///a%20b/m.onnx")
