"""What a regression's report shows, from numbers that were made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.loading.batch import Batch
from pipeline.inference.mistakes import NumberRecord
from pipeline.inference.number_report import LEAST_POINTS, MOST_POINTS, number_text, targets_of, worst_of_all
from pipeline.inference.report_parts import MOST_PICTURES, WORST
from pipeline.training.class_scores import ClassRow


def recorded(truth: np.ndarray, predicted: np.ndarray) -> NumberRecord:
    record = NumberRecord()
    for start in range(0, len(truth), 7):
        part = slice(start, start + 7)
        index = torch.arange(len(truth))[part]
        images = torch.zeros(len(index), 3, 1, 1, dtype=torch.uint8)
        record.add(Batch(images, torch.from_numpy(truth[part]), index), torch.from_numpy(predicted[part]))
    return record


def rows(count: int) -> list[ClassRow]:
    nothing = {"recall": None, "precision": None, "f1": None, "iou": None}
    return [ClassRow(name=f"t{n}", count=9, mae=1.0, rmse=2.0, r2=0.5, **nothing) for n in range(count)]


def test_the_largest_errors_come_first_in_deviations_over_targets() -> None:
    truth = np.zeros((50, 2))
    predicted = np.stack([np.linspace(0, 0.049, 50), np.linspace(-490, 0, 50)], 1)
    record = recorded(truth, predicted)
    first, second = targets_of(record, rows(2), (0.01, 1000.0), "number {}".format)
    assert [one.number for one in first.worst] == list(range(49, 37, -1))
    assert [one.number for one in second.worst] == list(range(12))
    assert (first.worst[0].truth, first.worst[0].predicted) == ("truth 0.0000", "0.0490")
    assert first.worst[0].score == "+0.0490 (4.90 SD)"
    assert second.worst[0].score == "-490 (0.49 SD)"
    assert second.worst[0].name == "number 0"
    assert first.scores[-2] == "-"  # truth is constant: it has no correlation
    assert "too high" in first.sentence
    assert "too low" in second.sentence
    both = worst_of_all(record, ("a", "b"), (0.01, 1000.0), str)
    assert len(both) == WORST
    assert {one.truth.split()[0] for one in both} == {"a"}  # b's largest is 0.49 deviations
    assert both[0].number == 49


def test_charts_stay_in_their_frames_and_count_every_image() -> None:
    generator = np.random.default_rng(1)
    truth = 1.7e9 + 1e7 * generator.standard_normal((9000, 1))
    predicted = truth + 3e6 * generator.standard_normal((9000, 1))
    predicted[5], predicted[6] = np.nan, np.inf
    (target,) = targets_of(recorded(truth, predicted), rows(1), (1e7,), str)
    assert len(target.worst) == WORST
    assert {target.worst[0].number, target.worst[1].number} == {5, 6}
    assert target.sentence.startswith("Not finite: 2 predictions. Half")
    assert MOST_POINTS - 2 <= len(target.scatter.points) <= MOST_POINTS
    assert len(target.scatter.worst) == WORST - 2
    places = [place for x, y, *_ in (*target.scatter.points, *target.scatter.worst) for place in (x, y)]
    assert min(places) >= 0
    assert max(places) <= 100
    assert sum(int(text.split()[0].replace(",", "")) for *_, text in target.histogram.bars) == 9000 - 2
    assert max(height for _, height, _ in target.histogram.bars) == 100
    assert 2 <= len(target.scatter.ticks) <= 6
    assert len(target.scatter.below) < len(target.scatter.ticks)  # such long numbers have no room


def test_a_few_wild_errors_do_not_press_the_others_into_one_bar() -> None:
    errors = np.random.default_rng(1).standard_normal((1000, 1))
    errors[3], errors[4] = 1e9, -1e9
    (target,) = targets_of(recorded(np.zeros((1000, 1)), errors), rows(1), (1.0,), str)
    bars = target.histogram.bars
    assert sum(int(text.split()[0]) for *_, text in bars) == 1000
    assert len(bars) > 20
    assert bars[0][2].startswith("1 images: the lowest to -")
    assert bars[-1][2].endswith(" to the highest")


@pytest.mark.parametrize("value", [0.0, 3.0, -1e12])
def test_one_image_and_numbers_that_are_all_the_same(value: float) -> None:
    for count in (1, 10):
        same = np.full((count, 1), value)
        (target,) = targets_of(recorded(same, same), rows(1), (1.0,), str)
        assert target.worst == []
        assert len(target.scatter.points) == count
        assert all(0 < x < 100 and 0 < y < 100 for x, y in target.scatter.points)


def test_many_targets_keep_the_page_small() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 300))
    found = targets_of(recorded(values, 2 * values), rows(300), [1.0] * 300, str)
    assert {len(target.worst) for target in found} == {(MOST_PICTURES - WORST) // 300}
    assert {len(target.scatter.points) for target in found} == {LEAST_POINTS}


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [(1234.5678, 250.0, "1,235"), (0.012345, 0.02, "0.0123"), (-0.00001, 1.0, "0.00"), (3.5e-9, 1e-9, "3.5e-09")],
)
def test_numbers_have_the_decimals_of_their_scale(value: float, scale: float, text: str) -> None:
    assert number_text(value, scale) == text
