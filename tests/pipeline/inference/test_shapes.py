"""A U-Net of images that are not square: trained, evaluated, used and exported."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.config import DataConfig
from datasets.loading.loader import build_eval_loader
from datasets.transforms.formats import IGNORED
from infra.storage.open import open_storage
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from model.config import ModelConfig
from pipeline.checkpoint.catalog import describe_checkpoints
from pipeline.inference.exported_model import open_exported
from pipeline.inference.predictor import open_predictor
from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.served_images import ServedImages
from pipeline.inference.trained_model import open_saved
from pipeline.schedule.stages import ramp
from pipeline.task_config import SegmentationConfig
from pipeline.training_config import CheckpointConfig, OptimizerConfig, TrainerConfig
from tests.support.configs import small_config
from tests.support.runs import TrainedRun, train_here
from tests.support.shards import image_of, mask_of, png, write_mask_shards

RATIO = 4 / 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """3 classes of images of 64x48, at 32x24 and then at 43x32."""
    folder = tmp_path_factory.mktemp("wide")
    for split, count in (("train", 60), ("val", 14)):
        write_mask_shards(folder / "data" / split, [count])
    config = small_config(
        folder / "data",
        str(folder / "runs"),
        stages=ramp(epochs=8, batch_size=24, num_stages=2, image_size=(24, 32), cutmix_alpha=(0, 0.5)),
        model=ModelConfig(name="unet_efficientnet_v2_tiny", stochastic_depth=0.0, norm_momentum=0.1),
        task=SegmentationConfig(),
        checkpoint=CheckpointConfig(every_epochs=8, every_s=0, best_metric="val/miou"),
        optimizer=OptimizerConfig(optimizer="adamw", lr=4e-3, warmup_epochs=1, ema_decay=0.8),
        trainer=TrainerConfig(eval_batch_size=16, eval_every_epochs=4),
    )
    data = replace(config.data, aspect_ratio=RATIO, crop_area=(0.5, 1.0), eval_crop="whole")
    train_here(replace(config, data=data))
    return TrainedRun(folder / "runs/small", folder / "data")


def test_an_evaluation_of_the_checkpoint_is_the_one_of_the_run(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [str(trained.folder), "--data", str(trained.data / "val"), "--loader-workers", "0"]
    found = tmp_path / "found.json"
    assert evaluate([*told, "--json", str(found), "--report", str(tmp_path), "--pictures", str(tmp_path)]) == 0
    assert ", 43x32 px, on 14 images" in capsys.readouterr().out
    values = json.loads(found.read_text())
    assert (values["image_size"], values["aspect_ratio"]) == (32, RATIO)
    recorded = [row.metrics for row in describe_checkpoints(open_storage(trained.folder)) if row.metrics][-1]
    assert recorded["val/miou"] == values["metrics"]["miou"] > 0.4
    with Image.open(tmp_path / "predictions.png") as shown:  # 12 columns of image, truth and prediction
        assert (shown.width, shown.height) == (80 + 12 * (43 + 4), 3 * (32 + 4) + 2 * 16)


@pytest.mark.parametrize("rule", ["whole", "central"])
@pytest.mark.parametrize("tile", [0, 20])
def test_a_predicted_mask_lies_on_its_image(trained: TrainedRun, rule: str, tile: int) -> None:
    predictor = open_predictor(str(trained.folder))
    view = replace(predictor.preprocessing, eval_crop=rule)  # type: ignore[arg-type]
    (found,) = replace(predictor, preprocessing=view, tile=tile).predict([png(image_of(1, 900))])
    assert not isinstance(found, ValueError)
    assert found.mask is not None
    assert found.mask.shape == (48, 64)
    seen = found.mask != IGNORED
    if not tile and rule == "central":
        # A half, 32 / (32 + 32), of the largest part of 43:32 in 64x48, which is less than 48 high.
        assert (seen.any(1).sum(), seen.any(0).sum()) == (23, 32)
    else:
        assert seen.all()
    assert (found.mask == mask_of(1, 900))[seen].mean() > 0.5


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.soak)])
def test_an_exported_model_has_the_shape_and_says_it(trained: TrainedRun, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    assert export([str(trained.folder), "--to", str(path)]) == 0
    facts, run = open_exported(path)
    view = facts["preprocessing"]
    assert (view["height"], view["width"], view["image_size"], view["aspect_ratio"]) == (32, 43, 32, RATIO)
    assert run(np.zeros((3, 3, 32, 43), dtype=np.uint8)).shape == (3, 3, 32, 43)
    exported, own = open_predictor(str(path)), open_predictor(str(trained.folder))
    assert exported.preprocessing == own.preprocessing
    files = [png(image_of(1, 900)), png(image_of(1, 901, height=90, width=40))]
    for one, other in zip(exported.predict(files), own.predict(files), strict=True):
        assert not isinstance(one, ValueError)
        assert not isinstance(other, ValueError)
        assert np.mean(one.mask == other.mask) > 0.999  # but for ties


def test_another_size_keeps_the_ratio(trained: TrainedRun) -> None:
    assert open_saved(str(trained.folder), image_size=48).preprocessing.shape == (48, 64)


VIEWS = st.builds(
    Preprocessing,
    image_size=st.integers(8, 400),
    aspect_ratio=st.floats(0.1, 10),
    eval_crop=st.sampled_from(["central", "whole", "central_below_320"]),
    pixel_mean=st.just(128.0),
    pixel_std=st.just(128.0),
)


@given(VIEWS)
def test_facts_are_read_as_they_were_written(view: Preprocessing) -> None:
    facts = json.loads(json.dumps(view.facts()))
    assert Preprocessing.from_facts(facts) == view
    assert (facts["height"], facts["width"]) == view.shape
    del facts["aspect_ratio"]  # of files from before there were other shapes
    assert Preprocessing.from_facts(facts).shape == (view.image_size, view.image_size)


@pytest.mark.parametrize("rule", ["central", "whole"])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.333])
def test_training_evaluation_and_serving_look_at_the_same_pixels(trained: TrainedRun, rule: str, ratio: float) -> None:
    data = DataConfig(val=str(trained.data / "val"), aspect_ratio=ratio, eval_crop=rule, loader_workers=0)  # type: ignore[arg-type]
    (batch,) = build_eval_loader(data, image_size=24, batch_size=14, rank=0, world_size=1)
    view = Preprocessing(image_size=24, aspect_ratio=ratio, eval_crop=rule, pixel_mean=0, pixel_std=1)  # type: ignore[arg-type]
    served = ServedImages()
    served.rules = asdict(view)
    for number, image in enumerate(batch.images.permute(0, 2, 3, 1).numpy()):
        file = png(image_of(1, number))
        assert np.array_equal(view.pixels(file)[0], image)
        assert np.array_equal(served.pixels(file), image)
