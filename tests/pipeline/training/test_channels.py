"""Training on images of five channels of 16 bits, and what the run is used for afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.transforms.formats import PixelFormat
from infra.storage.open import open_storage
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.plan import main as plan
from model.config import ModelConfig
from model.factory import build_model
from model.weights import load_weights
from pipeline.checkpoint.catalog import CheckpointError, describe_checkpoints
from pipeline.config import TrainConfig
from pipeline.inference.exported_model import open_exported
from pipeline.inference.predictor import open_predictor
from pipeline.inference.trained_model import open_saved
from pipeline.run.preflight import check_run, with_start, with_statistics
from pipeline.schedule.stages import ramp
from pipeline.task_config import SegmentationConfig
from pipeline.training.evaluation import normalized
from pipeline.training.figures import as_rgb
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig
from tests.support.bands import bands_of, npy, tiff, write_band_shards, write_masked_band_shards
from tests.support.configs import small_config
from tests.support.recorders import Recorder
from tests.support.runs import TrainedRun, train_here
from tests.support.shards import image_of, mask_of
from tests.support.trainers import assert_same_weights, make_trainer

FIVE = PixelFormat("uint16", 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bands")
    write_band_shards(folder / "train", [50, 46])
    write_band_shards(folder / "val", [24], container="tif")
    return folder


def band_config(data: Path, storage: str, *, pixels: PixelFormat = FIVE, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "data": DataConfig(
            train=str(data / "train"),
            val=str(data / "val"),
            loader_workers=0,
            block_size=16,
            pixel_type=pixels.kind,
            channels=pixels.channels,
            randaugment_policy="geometric",
            crop_area=(0.5, 1.0),
            eval_crop="whole",
        ),
        "model": ModelConfig(name="efficientnet_v2_tiny", in_channels=5, stochastic_depth=0.1, norm_momentum=0.1),
    }
    return small_config(data, storage, **(values | changes))


def learning_config(data: Path, storage: str) -> TrainConfig:
    return band_config(
        data,
        storage,
        stages=ramp(epochs=6, batch_size=24, num_stages=2, image_size=(24, 32), randaugment_magnitude=(2, 4)),
        optimizer=OptimizerConfig(optimizer="adamw", lr=1e-2, warmup_epochs=1, schedule="cosine", ema_decay=0.8),
        trainer=TrainerConfig(eval_batch_size=16, eval_every_epochs=3),
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run whose labels only the fourth channel tells."""
    storage = tmp_path_factory.mktemp("runs")
    config = learning_config(data, str(storage))
    train_here(with_statistics(config, {}, check_run(config).train))
    return TrainedRun(storage / config.name, data)


def test_a_run_learns_what_the_fourth_channel_says(trained: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    told = [str(trained.folder), "--data", str(trained.data / "val"), "--loader-workers", "0", "--json", "-"]
    assert evaluate(told) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] > 0.9
    storage = open_storage(trained.folder)
    recorded = [row.metrics for row in describe_checkpoints(storage) if row.metrics][-1]
    assert recorded["val/accuracy"] == metrics["accuracy"]
    assert open_saved(str(trained.folder)).preprocessing.channel_mean[3] == pytest.approx(1750, rel=0.1)


@pytest.fixture(scope="module")
def whole(data: Path) -> tuple[TrainConfig, Recorder]:
    """A run with everything that changes pixels, and what it recorded."""
    config = band_config(data, "unused")
    config = replace(config, stages=tuple(replace(stage, epochs=1.5, cutmix_alpha=0.5) for stage in config.stages))
    config = with_statistics(config, {}, check_run(config).train)
    make_trainer(config, recorder := Recorder()).run()
    return config, recorder


@pytest.mark.parametrize("index", [1, 3])  # within the first stage, and within the last
def test_a_run_on_five_channels_resumes_bit_for_bit(whole: tuple[TrainConfig, Recorder], index: int) -> None:
    config, recorder = whole
    resumed = Recorder()
    trainer = make_trainer(config, resumed)
    for parameter in trainer.learner.model.parameters():
        parameter.data.zero_()
    trainer.restore(recorder.snapshots[index])
    trainer.run()
    assert_same_weights(recorder.snapshots[-1], resumed.snapshots[-1])


def test_a_run_keeps_the_statistics_that_it_began_with(data: Path, trained: TrainedRun) -> None:
    config = learning_config(data, str(trained.folder.parent))
    recorded = open_saved(str(trained.folder)).config
    known = {"trainer": {"channel_mean": [1.0] * 5, "channel_std": [2.0] * 5}}
    kept = with_statistics(config, known, check_run(config).train)
    assert (kept.trainer.channel_mean, kept.trainer.channel_std) == ((1.0,) * 5, (2.0,) * 5)
    again = with_start(check_run(config))
    assert list(again.config.trainer.channel_mean) == recorded["trainer"]["channel_mean"]
    assert again.resume_from is not None
    given = replace(config, trainer=replace(config.trainer, channel_mean=(1.0,) * 5, channel_std=(2.0,) * 5))
    with pytest.raises(CheckpointError, match=r"trainer\.channel_mean\.0"):
        with_start(check_run(given))


def test_normalization_leaves_the_batch_as_it_is() -> None:
    images = torch.randn(2, 5, 4, 4).to(memory_format=torch.channels_last)
    before = images.clone()
    config = TrainerConfig(channel_mean=(1.0, 2.0, 3.0, 4.0, 5.0), channel_std=(1.0, 2.0, 1.0, 1.0, 4.0))
    got = normalized(images, config, torch.device("cpu"))
    assert torch.equal(images, before)
    assert torch.equal(got[:, 4], (images[:, 4] - 5.0) / 4.0)
    rgb = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalized(rgb, TrainerConfig(), torch.device("cpu")), (rgb.float() - 128) / 128)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A U-Net of two channels of float32."""
    folder = tmp_path_factory.mktemp("segmenter")
    for split, count in (("train", 48), ("val", 12)):
        write_masked_band_shards(folder / "data" / split, count)
    config = band_config(
        folder / "data",
        str(folder / "runs"),
        stages=ramp(epochs=4, batch_size=12, num_stages=1, image_size=(32, 32), randaugment_magnitude=(2, 2)),
        model=ModelConfig(name="unet_efficientnet_v2_tiny", in_channels=2, stochastic_depth=0.0, norm_momentum=0.1),
        task=SegmentationConfig(),
        checkpoint=CheckpointConfig(every_epochs=2, every_s=0, best_metric="val/miou"),
        optimizer=OptimizerConfig(optimizer="adamw", lr=4e-3, warmup_epochs=1, ema_decay=0.8),
        pixels=PixelFormat("float32", 2),
    )
    train_here(with_statistics(config, {}, check_run(config).train))
    return TrainedRun(folder / "runs/small", folder / "data")


@pytest.mark.soak
def test_masks_of_other_channels_are_learnt_predicted_and_shown(segmenter: TrainedRun, tmp_path: Path) -> None:
    told = [str(segmenter.folder), "--data", str(segmenter.data / "val"), "--loader-workers", "0"]
    assert evaluate([*told, "--report", str(tmp_path), "--json", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]["miou"] > 0.5
    assert (tmp_path / "report.html").stat().st_size > 1000
    file = npy(image_of(1, 900)[..., [1, 0]].astype(np.float32) / 100 - 1)
    predictor = open_predictor(str(segmenter.folder))
    for one in (predictor, replace(predictor, tile=32)):
        (found,) = one.predict([file])
        assert not isinstance(found, ValueError)
        assert found.mask is not None
        assert (found.mask == mask_of(1, 900)).mean() > 0.5


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_models_take_the_values_as_they_are(
    trained: TrainedRun, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"model{suffix}"
    assert export([str(trained.folder), "--to", str(path)]) == 0
    facts, _ = open_exported(path)
    view = facts["preprocessing"]
    assert (view["pixel_type"], view["channels"], view["channel_order"]) == ("uint16", 5, "as stored")
    assert view["input"].startswith("float32, 5 channels of uint16 values")
    files = [npy(bands_of(label, 900 + label)) for label in (0, 1)] + [tiff(bands_of(1, 7)), npy(np.zeros((3, 3)))]
    exported, own = open_predictor(str(path)), open_predictor(str(trained.folder))
    for one, other in zip(exported.predict(files[:3]), own.predict(files[:3]), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert [int(one.scores.argmax()) for one in exported.predict(files[:3])] == [0, 1, 1]
    assert "its values are float64" in str(own.predict(files)[3])
    if suffix == ".onnx":
        _check_served(path, files[:2])


def _check_served(path: Path, files: list[bytes]) -> None:
    from pipeline.inference.served_images import ServedImages

    served = ServedImages()
    served.load_context(SimpleNamespace(artifacts={"model": str(path)}))
    assert served.predict(None, pandas.DataFrame({"image": files}))["label"].tolist() == ["low", "high"]


def test_the_report_shows_the_first_three_channels(trained: TrainedRun, tmp_path: Path) -> None:
    told = [str(trained.folder), "--data", str(trained.data / "val"), "--loader-workers", "0"]
    assert evaluate([*told, "--report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1000
    shown = as_rgb(bands_of(0, 1).astype(np.float32))
    assert (shown.shape, shown.dtype, shown.min(), shown.max()) == ((40, 40, 3), np.uint8, 0, 255)
    assert as_rgb(np.zeros((4, 4, 2), np.float32)).shape == (4, 4, 3)
    rgb = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert as_rgb(rgb) is rgb


def test_weights_of_three_channels_are_spread_over_five() -> None:
    config = ModelConfig(name="efficientnet_v2_tiny")
    three, five = (build_model(replace(config, in_channels=count), num_classes=2) for count in (3, 5))
    notes = load_weights(five, three.state_dict())
    assert any("3 image channels in the file, 5 here: summed and spread evenly" in note for note in notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": ModelConfig(name="efficientnet_v2_tiny")}, "model.in_channels is 3, but images are read as 5 chan"),
        ({"trainer": TrainerConfig(channel_mean=(1.0,), channel_std=(1.0,))}, "have 1 numbers, but data.channels is 5"),
        ({"data.randaugment_policy": "google"}, "data.randaugment_policy is google, whose colour operations are"),
    ],
)
def test_what_does_not_fit_the_pixels_is_refused(data: Path, change: dict[str, object], said: str) -> None:
    config = band_config(data, "unused")
    policy = change.pop("data.randaugment_policy", "geometric")
    with pytest.raises(ValueError, match=said):
        replace(config, data=replace(config.data, randaugment_policy=policy), **change)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"channel_mean": (1.0,)}, "trainer.channel_mean has 1 numbers and trainer.channel_std 0"),
        ({"channel_mean": (1.0,), "channel_std": (0.0,)}, "each must be above 0"),
    ],
)
def test_wrong_statistics_are_refused(values: dict[str, tuple[float, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainerConfig(**values)  # type: ignore[arg-type]


def test_a_plan_says_with_which_flags_the_images_are_read(data: Path) -> None:
    argv = ["demo", "--data.train", str(data / "train"), "--data.val", str(data / "val")]
    with pytest.raises(DataError, match=r"^data.train: the images hold 5 channels of uint16, but .* --data.channels 5"):
        plan(argv)
    assert plan([*argv, *FIVE.flags]) == 0
