"""`jobs.search` as a user runs it: killed, and gone on with by the same command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from infra.storage.open import open_storage
from jobs.common.cli import parse_recipe
from jobs.search import main
from model.rows import rows_from_json
from pipeline.search.reward import reward
from pipeline.sweep.ledger import Record, read_records
from tests.support.killing import run_until
from tests.support.shards import write_shards


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_search_goes_on_and_measures_and_trains_nothing_twice(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    write_shards(tmp_path / "train", [50, 64, 23])
    write_shards(tmp_path / "val", [30])
    study = tmp_path / "runs" / "s"
    command = [
        *("fonts_small", "--name", "s", "--storage", str(tmp_path / "runs")),
        *("--data.train", str(tmp_path / "train"), "--data.val", str(tmp_path / "val")),
        *("--tracking.uri", sqlite_uri, "--tracking.system-metrics", "False"),
        *("--cluster.num-workers", "1", "--cluster.standby", "False", "--max-trials", "2", "--concurrent", "1"),
        *("--epochs", "0.2", "--image-size", "32", "--latency-repeats", "1", "--latency-checks", "1"),
    ]

    def finished() -> list[Record]:
        return [record for record in read_records(open_storage(str(study))) if record.state == "finished"]

    # On a cluster of its own, which dies with it.
    run_until([sys.executable, "-m", "jobs.search", *command], lambda: bool(finished()))
    (base,) = finished()
    kept = [study / "latency.json", *(tmp_path / "runs" / base.name).rglob("model.safetensors")]
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) > 1

    assert main(command) == 0
    assert [record.number for record in finished()] == [0, 1]
    assert base in finished()
    assert [path.stat().st_mtime_ns for path in kept] == times
    (best,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m jobs.train "))
    trained, _ = parse_recipe(shlex.split(best)[3:], prog="train")
    assert (trained.name, trained.data.train, len(trained.model.rows)) == ("s-best", str(tmp_path / "train"), 4)
    assert len(rows_from_json((study / "report" / "rows.json").read_text())) == 4
    assert list((study / "report" / "front").iterdir())

    client = MlflowClient(sqlite_uri)
    runs = client.search_runs(["0", "1"], "tags.mlflow.parentRunId != ''")
    assert {run.data.tags["mlflow.runName"]: run.data.metrics["reward"] for run in runs} == {
        record.name: pytest.approx(
            reward(record.stages[-1]["val/accuracy"], record.figures["step_ratio"], record.figures["parameter_ratio"])
        )
        for record in finished()
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not [name for run in runs for name in run.data.params if "extra_params" in name]
