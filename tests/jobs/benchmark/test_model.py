import json

import pytest

from jobs.benchmark.model import Options, main, run

SMALL = {"batch_size": 2, "image_size": 32, "rounds": 3}


def test_each_library_and_step_is_compared() -> None:
    comparisons = run(Options(names=("efficientnet_b0", "efficientnet_v2_b0"), **SMALL))
    assert [(c.name, c.library) for c in comparisons] == [
        *[("efficientnet_b0", "torchvision"), ("efficientnet_b0", "timm")] * 2,
        *[("efficientnet_v2_b0", "timm")] * 2,
    ]
    assert {c.step for c in comparisons} == {"forward", "forward+backward"}
    assert all(0 < c.ratio_low <= c.ratio <= c.ratio_high for c in comparisons)


def test_json_is_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--names", "resnet50", "--batch-size", "2", "--image-size", "32", "--rounds", "1", "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["library"] for row in rows} == {"torchvision", "timm"}


def test_a_model_of_no_other_library_is_refused() -> None:
    with pytest.raises(ValueError, match="neither torchvision nor timm"):
        run(Options(names=("efficientnet_v2_tiny",), **SMALL))
    with pytest.raises(ValueError, match="--rounds 0"):
        Options(rounds=0)
