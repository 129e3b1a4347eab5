"""Models that `jobs.export` wrote, once for all tests: an export takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.export import main
from tests.support.runs import TrainedRun


@pytest.fixture(scope="session")
def exported(
    trained_classifier: TrainedRun, trained_segmenter: TrainedRun, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """`classifier.onnx`, `classifier.pt2`, `segmenter.onnx` and `segmenter.pt2` by name; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    for kind, run in (("classifier", trained_classifier), ("segmenter", trained_segmenter)):
        for suffix in (".onnx", ".pt2"):
            assert main([str(run.folder), "--to", str(folder / f"{kind}{suffix}")]) == 0
    return {path.name: path for path in folder.iterdir()}
