"""Servers and a Ray cluster that tests ask for by name; each starts when the first test asks, once a pytest process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from infra.cluster.connect import start_ray
from tests.support.runs import TrainedRun, train_classifier, train_segmenter
from tests.support.servers import MlflowServer, S3Server

ROOT = Path(__file__).parents[1]
SHARED = {
    "ray": (
        "tests/jobs/test_train.py",
        "tests/jobs/test_operations.py",
        "tests/jobs/test_control.py",
        "tests/jobs/test_live_control.py",
        "tests/jobs/test_hang.py",
        "tests/jobs/test_predict_table.py",
        "tests/jobs/benchmark/test_scaling.py",
        "tests/pipeline/run/test_ray_policies.py",
        "tests/pipeline/run/test_group_policies.py",
        "tests/pipeline/run/test_controller_client.py",
        "tests/pipeline/run/test_moved_mlflow.py",
        "tests/pipeline/compare/test_compare.py",
        "tests/infra/test_spot_watch.py",
        "tests/infra/cluster/test_cluster_files.py",
        "tests/infra/cluster/test_prometheus.py",
        "tests/infra/cluster/test_connect.py",
        "tests/infra/cluster/test_prestart.py",
    ),
    "own clusters": (
        "tests/chaos/test_chaos.py",
        "tests/infra/cluster/test_autoscaler.py",
        "tests/infra/cluster/test_ray_up.py",
    ),
    "studies": (
        "tests/jobs/test_search.py",
        "tests/jobs/test_sweep.py",
        "tests/jobs/test_compare.py",
        "tests/pipeline/sweep/test_study.py",
    ),
    "trained": (
        "tests/test_documented_commands.py",
        "tests/jobs/test_evaluate.py",
        "tests/jobs/test_export.py",
        "tests/jobs/test_predict.py",
        "tests/jobs/test_report.py",
    ),
}
"""Files whose tests share something that takes long to start: they run in one of pytest's processes."""

# Two pytest processes share two cores: threads of one that spin would take the other's time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes are killed here, never the machine: what they wrote needs no disk to outlive them. That a file is on disk
# before it appears is seen in tests/infra/storage/test_open.py, in a process of its own.
os.fsync = os.fdatasync = lambda descriptor: None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Spread tests over pytest's processes by file: what shares a Ray cluster to one, which fills the cores."""
    return ByResource(config, log)


class ByResource(LoadScopeScheduling):
    """Tests of one file, of one trained run or of the Ray cluster share a process."""

    def _split_scope(self, nodeid: str) -> str:
        return resource(nodeid)


def resource(nodeid: str) -> str:
    """Return what a test shares with others: a name in `SHARED`, or its file."""
    file = nodeid.split("::")[0]
    return next((name for name, files in SHARED.items() if file in files), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that both processes end at about the same time."""
    for item in items:
        needs = {"ray_cluster", "trained_classifier", "trained_segmenter"} & {*getattr(item, "fixturenames", ())}
        if needs and resource(item.nodeid) not in SHARED:
            raise pytest.UsageError(f"{item.nodeid} uses {needs}: name its file in SHARED of tests/conftest.py")
    order = list(SHARED)
    items.sort(key=lambda item: order.index(r) if (r := resource(item.nodeid)) in order else len(order))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU, and PyTorch finds none")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the bucket `S3Server.bucket`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of the S3 server's bucket, with the environment set to reach it."""
    for name, value in s3_server.client_environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{os.urandom(8).hex()}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow tracking server over SQLite."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def _empty_mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from infra.tracking.mlflow_run import make_client

    path = tmp_path_factory.mktemp("mlflow-db") / "mlflow.db"
    make_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_uri(_empty_mlflow_db: Path, tmp_path: Path) -> str:
    """The URI of an MLflow database of the test's own, with tables (which take seconds to make) and no runs."""
    shutil.copy(_empty_mlflow_db, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, whose processes end with the session."""
    import ray

    # Reports are taken at this pace; the default of 2 s would make each of them that slow.
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A folder of its own: an address file that a dead cluster left would be followed.
    folder = tempfile.mkdtemp(prefix="ray-test-")
    start_ray(
        num_cpus=2,
        num_gpus=0,
        object_store_memory=200 * 2**20,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster_address(ray_cluster: None) -> str:
    """The address of `ray_cluster`, for a driver in a process of its own: `--cluster.address`."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A small classifier's run with its checkpoints and its data; not to be changed."""
    return train_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def trained_segmenter(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A small U-Net's run with its checkpoints and its data; not to be changed."""
    return train_segmenter(tmp_path_factory.mktemp("segmenter"))
