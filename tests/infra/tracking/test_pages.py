"""What MLflow's pages show of runs, in a browser, from a server over PostgreSQL."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from infra.devstack.server import free_ports
from infra.devstack.servers import MlflowServer
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.mlflow_run import make_client
from infra.tracking.tracker import Tracker
from tests.support.browser import CHROMIUM, keep_picture, missing
from tests.support.lineage import TRAIN, VAL, checkpoint
from tests.support.postgres import running_postgres

STEPS = (24, 48, 72)
COLORS = ((200, 60, 60), (60, 160, 60), (60, 60, 200))


@contextmanager
def server_over_postgres(folder: Path) -> Iterator[MlflowServer]:
    with running_postgres() as postgres:
        server = MlflowServer(folder / "mlflow", port=free_ports(1), backend=postgres.uri)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def picture(color: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (320, 160), color).save(stream, "PNG")
    return stream.getvalue()


def record(config: TrackingConfig, folder: Path, name: str, accuracies: tuple[float, float, float]) -> Tracker:
    """Record a run of three stages that keeps two checkpoints, as rank 0 does."""
    tracker = Tracker(config, name, storage=open_storage(folder / name))
    tracker.set_description("**efficientnet_v2_tiny** on `data/elpv`")
    tracker.log_params({"stages.0.image_size": 32, "optimizer.lr": 0.004})
    tracker.log_inputs([TRAIN, VAL])
    for stage, (step, accuracy) in enumerate(zip(STEPS, accuracies, strict=True)):
        tracker.log_metrics({"stage/image_size": 32 + 16 * stage, "train/loss": 2 / (1 + stage)}, step)
        tracker.log_metrics({"val/accuracy": accuracy, "val/loss": 1 - accuracy}, step)
        tracker.log_image(
            "samples", picture(COLORS[stage]), step - STEPS[0]
        )  # at the stage's start, as the first batch
    kept = zip(STEPS[1:], accuracies[1:], strict=True)
    tracker.log_checkpoints([replace(checkpoint(*one, run=name), name=f"{name}-{one[0]}") for one in kept])
    assert tracker.close("FINISHED", 60), tracker.problem
    return tracker


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_pages_show_datasets_checkpoints_versions_and_a_slider_of_pictures(tmp_path: Path) -> None:
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("Chromium is not on this machine (Debian: chromium)")
    with server_over_postgres(tmp_path) as server:
        config = TrackingConfig(uri=server.url, system_metrics=False, send_interval_s=0.05)
        best = record(config, tmp_path, "moon", (0.5, 0.625, 0.875))
        record(config, tmp_path, "star", (0.5, 0.6, 0.75))
        client = make_client(server.url)
        (model,) = client.search_logged_models(
            [client.get_run(best.run_id).info.experiment_id], "name = 'moon-72'", max_results=1
        )
        client.create_registered_model("shapes")
        version = client.create_model_version(
            "shapes", f"models:/{model.model_id}", best.run_id, {"score": "0.875"}, model_id=model.model_id
        )
        client.update_model_version("shapes", version.version, "**efficientnet_v2_tiny** at 64 px")
        client.set_registered_model_alias("shapes", "champion", version.version)
        run, _, view = best.url.partition("?")
        experiment = run.rpartition("/runs/")[0]
        pages = {
            "runs": (f"{experiment}/runs?{view}", ["moon", "star", "elpv/train", "Dataset"]),
            "run": (best.url, ["moon", "efficientnet_v2_tiny", "elpv/train", "elpv/val", "val/accuracy", "0.875"]),
            "metrics": (f"{run}/model-metrics?{view}", ["samples", "main-svg", r"<img [^>]*get-artifact\?path=images"]),
            "checkpoints": (f"{experiment}/models?{view}", ["moon-48", "moon-72", "star-72", "val/accuracy", "0.875"]),
            "version": (f"{server.url}/#/models/shapes/versions/1?{view}", ["at 64 px", "champion", "score", "0.875"]),
        }
        lacks = {}
        for name, (url, parts) in pages.items():
            lacks[name] = missing(url, tmp_path / "browser", *parts)
            keep_picture(url, tmp_path / "browser", name)
        assert lacks == {name: [] for name in pages}
