"""`jobs.benchmark gpu`: all of it in seconds on a CPU, and what it finds on a GPU."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.benchmark.gpu.command import MEASURES, main, measure, run_in_a_process, run_part
from jobs.benchmark.gpu.determinism import measure_determinism
from jobs.benchmark.gpu.options import PARTS, Options, device_config, shrunk
from jobs.benchmark.gpu.out_of_memory import measure_memory
from jobs.benchmark.gpu.peaks import PEAKS, peak_tflops
from jobs.benchmark.gpu.speed import OURS, PLAIN, TIMM, measure_speed
from jobs.benchmark.gpu.waits import SynchronizationWatch, measure_waits
from jobs.benchmark.scaling import main as scaling
from jobs.recipes.imagenet import efficientnetv2_s_google
from jobs.recipes.solar_cells import demo_scratch
from pipeline.config import TrainConfig
from pipeline.training.device import choose_algorithms
from tests.support.shards import write_shards

ON_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 96), ("val", 16)):
        write_shards(folder / split, [count])
    return folder


@pytest.fixture(scope="module")
def report(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--tiny --json` prints."""
    out = tmp_path_factory.mktemp("report") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        # Dynamo as it is, without the compiler of C++ or Triton, which takes minutes.
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        patch.setattr("builtins.print", lambda text: out.write_text(text))
        code = main(["--tiny", "--json", "--shards", str(shards)])
    choose_algorithms(deterministic=False)
    torch.backends.cudnn.benchmark = False
    found: dict[str, Any] = json.loads(out.read_text())
    assert code == 0, found["parts"]
    return found


def tiny(shards: Path, **changes: object) -> tuple[TrainConfig, Options]:
    options = shrunk(Options(tiny=True, shards=shards, **changes))  # type: ignore[arg-type]
    return device_config(efficientnetv2_s_google(), options), options


def test_every_part_is_measured_in_every_stage(report: dict[str, Any]) -> None:
    assert tuple(report["parts"]) == PARTS == tuple(MEASURES)
    rows = {part: found["rows"] for part, found in report["parts"].items()}
    speed = rows["speed"]
    assert [(row["image_size"], row["contender"]) for row in speed] == [(s, c) for s in (32, 48) for c in (OURS, PLAIN)]
    assert all(0 < row["host_ms"] <= row["step_ms"] for row in speed + rows["compile"])
    assert all(row["relative_low"] <= row["relative"] <= row["relative_high"] for row in speed)
    assert [row["relative"] for row in speed if row["contender"] == OURS] == [1.0, 1.0]
    assert [(row["image_size"], row["first_step_s"] > 0) for row in rows["compile"]] == [(32, True), (32, False)]
    for row in rows["schedule"]:
        assert 0 <= row["data_wait_share"] < 1
        assert min(row["images_per_s"], row["eval_images_per_s"], row["peak_gib"], row["micro_batch"]) > 0
    assert [row["image_size"] for row in rows["schedule"]] == [row["image_size"] for row in rows["waits"]] == [32, 48]


def test_a_resumed_run_and_one_without_memory_end_as_they_should(report: dict[str, Any]) -> None:
    (determinism,), (memory,) = (report["parts"][part]["rows"] for part in ("determinism", "memory"))
    assert determinism["equal"]
    assert len(determinism["whole"]) == 64
    assert memory["survived"]
    assert memory["stand_in"] != ON_GPU
    if not ON_GPU:
        assert (memory["restarts"], memory["micro_batch"]) == (1, 4)
        assert memory["restart_s"] > 0


def test_a_cpu_is_said_to_be_one(report: dict[str, Any], capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    assert bool(report["gpu"]) == ON_GPU
    assert report["tiny"]
    if not ON_GPU:
        assert report["peak_tflops"] is None
        assert {row["utilization"] for row in report["parts"]["speed"]["rows"]} == {None}
        assert {row["waits"] for row in report["parts"]["waits"]["rows"]} == {None}
        main(["--tiny", "--shards", str(shards), "--parts", "waits"])
        shown = capsys.readouterr().out
        assert "no GPU: these figures are of a CPU" in shown
        assert "not seen: only a GPU is waited for" in shown


def test_scaling_predicts_from_its_steps(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(report))
    words = ["efficientnetv2_s_google", "--model.name", "efficientnet_v2_tiny", "--measured", str(path), "--json"]
    assert scaling([*words, "--workers", "8", "--gb-per-s", "10"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    steps = {row["image_size"]: row for row in report["parts"]["speed"]["rows"] if row["contender"] == OURS}
    for stage in predicted:
        step = steps[stage["image_size"]]
        assert stage["batch_size"] == 64
        total = step["step_ms"] + stage["all_reduce_ms"]
        assert stage["images_per_s"] == pytest.approx(64_000 / total)
        assert stage["efficiency"] == pytest.approx(step["step_ms"] / total)
    assert len(predicted) == 2
    with pytest.raises(
        ValueError, match=r"gpu\.json: its steps are of efficientnet_v2_tiny, and the recipe's model is"
    ):
        scaling(["efficientnetv2_s_google", "--measured", str(path)])
    with pytest.raises(ValueError, match=r"nothing\.json: .*No such file.*`jobs.benchmark gpu --json` writes it"):
        scaling(["efficientnetv2_s_google", "--measured", str(tmp_path / "nothing.json")])


def test_timms_model_has_its_turn(shards: Path) -> None:
    config, options = tiny(shards)
    alone = replace(config, model=replace(config.model, name="timm/test_efficientnet"), stages=config.stages[:1])
    rows = measure_speed(alone, options)
    assert [row.contender for row in rows] == [OURS, PLAIN, TIMM]
    assert all(row.step_ms > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_a_peak_is_that_of_the_very_card_or_none(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
    assert all(source for _, _, source in PEAKS)


def test_a_wait_is_counted_where_it_is_made() -> None:
    watch = SynchronizationWatch()
    watch.start()
    for _ in range(2):
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)
    warnings.warn("something else", UserWarning, stacklevel=1)
    watch.stop()
    ((place, count),) = watch.found.items()
    assert place.startswith("tests/jobs/benchmark/gpu/test_gpu.py:")
    assert count == 2
    with pytest.warns(UserWarning, match="synchronizing"):  # as before
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
    assert watch.found.total() == 2


def test_a_part_that_fails_leaves_the_others(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, options = tiny(shards, parts=("speed", "waits"))

    def broken(config: TrainConfig, options: Options) -> list[Any]:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr("jobs.benchmark.gpu.command.MEASURES", {**MEASURES, "speed": broken})
    parts = measure(config, options)["parts"]
    assert parts["speed"] == {"error": "RuntimeError: no kernel image is available"}
    assert len(parts["waits"]["rows"]) == 2


def test_a_part_in_a_process_of_its_own_has_loader_processes(shards: Path) -> None:
    config, options = tiny(shards)
    config = replace(config, stages=config.stages[:1], data=replace(config.data, loader_workers=1))
    (row,) = run_in_a_process("schedule", config, options)
    assert row["loader_workers"] == 1
    assert row["images_per_s"] > 0


def test_what_cannot_be_measured_is_refused(shards: Path) -> None:
    options, base = Options(tiny=True, shards=shards), demo_scratch()
    bands = replace(
        base,
        data=replace(base.data, pixel_type="uint8", channels=4, randaugment_policy="geometric"),
        model=replace(base.model, in_channels=4),
    )
    with pytest.raises(ValueError, match=r"^data\.pixel_type is uint8: only rgb is measured$"):
        device_config(bands, options)
    with pytest.raises(ValueError, match="--steps 1: must be at least 2"):
        Options(steps=1)


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_and_bits_are_kept(shards: Path) -> None:
    config, options = tiny(shards)
    try:
        (row,) = measure_determinism(config, options)
        waits = measure_waits(config, options)
    finally:
        choose_algorithms(deterministic=False)
    assert row.equal
    assert [one.waits for one in waits] == [{}, {}]


@pytest.mark.gpu
def test_on_a_gpu_too_little_memory_is_survived(shards: Path) -> None:
    options = Options(shards=shards, per_gpu_batch=64, steps=2, rounds=1)
    base = efficientnetv2_s_google()
    config = device_config(replace(base, stages=(replace(base.stages[0], image_size=224),)), options)
    (row,) = measure_memory(config, options)
    assert row.survived
    assert not row.stand_in
    assert row.restarts >= 1
    assert row.micro_batch <= 32


@pytest.mark.gpu
def test_on_a_gpu_the_compiled_model_is_trained(shards: Path) -> None:
    config, options = tiny(shards)
    (cold, plain) = run_part("compile", replace(config, stages=config.stages[:1]), options)
    assert cold["first_step_s"] > 0
    assert cold["images_per_s"] > 0 < plain["images_per_s"]
