from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import TrainingStage, ramp

STAGES = (
    TrainingStage(image_size=32, epochs=1, batch_size=24),
    TrainingStage(image_size=48, epochs=2, batch_size=48),
    TrainingStage(image_size=64, epochs=1, batch_size=24),
)


def test_ramp_is_the_papers_algorithm_1() -> None:
    stages = ramp(epochs=350, batch_size=4096, image_size=(128, 300), randaugment_magnitude=(5, 15), dropout=(0.1, 0.3))
    assert [stage.image_size for stage in stages] == [128, 185, 243, 300]
    assert [stage.randaugment_magnitude for stage in stages] == pytest.approx([5, 8.333333, 11.666667, 15])
    assert [stage.dropout for stage in stages] == pytest.approx([0.1, 1 / 6, 0.7 / 3, 0.3])
    assert [stage.epochs for stage in stages] == [87.5] * 4


def test_ramp_of_one_stage_is_the_end_and_sizes_round_to_the_multiple() -> None:
    assert [s.image_size for s in ramp(epochs=1, batch_size=8, image_size=(64, 128), num_stages=1)] == [128]
    sizes = [s.image_size for s in ramp(epochs=1, batch_size=8, image_size=(64, 128), size_multiple=32)]
    assert sizes == [64, 96, 96, 128]


def test_spans_follow_each_other_in_whole_batches() -> None:
    spans = TrainingSchedule(STAGES, 132).spans
    assert [(span.start, span.stop) for span in spans] == [(0, 144), (144, 432), (432, 576)]
    assert [span.num_steps for span in spans] == [6, 6, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 4}, "image_size is 4"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"crop_area": (0.5, 0.2)}, r"crop_area is \(0.5, 0.2\)"),
        ({"low_frequency_of": 32}, "low_frequency_of is 32: it must be above image_size=32 and at most 16,384, or 0"),
        ({"low_frequency_of": 20_000}, "low_frequency_of is 20000: it must be above"),
        ({"image_size": 1_000_000}, "image_size is 1000000: it must be from 8 to 16,384 px"),
        ({"random_sizes": (32, 20_000), "random_size_share": 0.5}, r"random_sizes is \(32, 20000\)"),
        ({"epochs": 1e300}, r"epochs is 1e\+300: it must be above 0 and at most 1,000,000"),
        ({"random_sizes": (32,)}, r"random_size_share is 0.0: it must be above 0 and at most 1 with random_sizes"),
        ({"random_size_share": 0.2}, r"random_size_share is 0.2: .* and 0 without"),
        ({"random_sizes": (32,), "random_size_share": 1.5}, "random_size_share is 1.5"),
        ({"random_sizes": (4,), "random_size_share": 0.5}, r"random_sizes is \(4,\)"),
        ({"random_sizes": (32,), "random_size_share": 0.5, "low_frequency_of": 96}, "leave one of them out"),
        ({"mixup_alpha": -1}, "mixup_alpha is -1"),
        ({"randaugment_magnitude": float("nan")}, "randaugment_magnitude is nan"),
    ],
)
def test_a_bad_stage_names_the_field_and_the_value(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 8, **change}
    with pytest.raises(ValueError, match=message):
        TrainingStage(**values)


def test_random_sizes_count_in_the_pixels_of_a_stage() -> None:
    stage = TrainingStage(image_size=64, epochs=1, batch_size=8, random_sizes=(32, 48, 64), random_size_share=0.25)
    assert stage.image_sizes == (64, 32, 48)
    assert stage.mean_pixels(1.0) == 0.75 * 64**2 + 0.25 * (32**2 + 48**2 + 64**2) / 3
    for ratio in (1.5, 1 / 1.5):
        assert stage.mean_pixels(ratio) == pytest.approx(1.5 * stage.mean_pixels(1.0))
    assert replace(stage, random_sizes=(), random_size_share=0.0).mean_pixels(1.0) == 64**2
