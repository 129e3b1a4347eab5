from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.inference.mistakes import LabelRecord, MaskRecord
from pipeline.inference.report_parts import MOST_PICTURES, calibration, label_gallery, mask_gallery
from pipeline.task_config import SegmentationConfig
from pipeline.training.class_scores import calibration_error
from pipeline.training.metrics import ClassificationScores
from pipeline.training.segmentation import SegmentationTask

CLASSES = tuple("abcde")


def batches(count: int, *, size: int = 7, masks: bool = False) -> list[tuple[Batch, Tensor]]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 5, (count,), generator=generator)
    shape = (count, 5, 6, 6) if masks else (count, 5)
    logits = torch.randn(shape, generator=generator) * 2
    truth = torch.randint(0, 5, (count, 6, 6), generator=generator).to(torch.uint8)
    truth[:, 0] = 255
    images, numbers = torch.zeros(count, 3, 6, 6, dtype=torch.uint8), torch.arange(count)
    return [
        (Batch(images[at], labels[at], numbers[at], truth[at] if masks else None), logits[at])
        for at in (slice(start, start + size) for start in range(0, count, size))
    ]


def segmentation(**fields: int) -> SegmentationTask:
    return SegmentationTask(SegmentationConfig(**fields), CLASSES)  # type: ignore[arg-type]


def recorded(record: LabelRecord | MaskRecord, made: list[tuple[Batch, Tensor]]) -> None:
    for batch, logits in made:
        record.add(batch, logits)


def test_the_worst_mistakes_are_those_of_the_highest_confidence() -> None:
    record, made = LabelRecord(), batches(100)
    recorded(record, made)
    gallery = label_gallery(record, CLASSES, lambda number: f"n{number}")
    labels = torch.cat([batch.labels for batch, _ in made])
    confidence, predicted = torch.cat([logits for _, logits in made]).softmax(1).max(1)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if labels[i] != predicted[i]]
    assert [one.number for one in gallery.worst] == wrong[:24]
    first = gallery.worst[0]
    assert (first.truth, first.predicted) == (CLASSES[labels[wrong[0]]], CLASSES[predicted[wrong[0]]])
    assert (first.score, first.name) == (f"{100 * confidence[wrong[0]]:.0f} %", f"n{wrong[0]}")
    for (truth, guess), shown in gallery.pairs.items():
        assert all((labels[one.number], predicted[one.number]) == (truth, guess) for one in shown)
    missed, taken = gallery.by_class[2]
    assert {one.truth for one in missed} == {"c"} == {one.predicted for one in taken}


def test_the_page_has_a_bounded_number_of_pictures() -> None:
    record = LabelRecord()
    count = 20000
    labels = torch.arange(count) % 200
    logits = torch.nn.functional.one_hot((labels * 7 + torch.arange(count) // 200) % 200, 200).float()
    record.add(Batch(torch.zeros(count, 3, 1, 1), labels, torch.arange(count)), logits)
    gallery = label_gallery(record, [str(number) for number in range(200)], str)
    assert len(gallery.numbers) <= MOST_PICTURES
    assert gallery.left_out > 0


def test_masks_are_ranked_by_their_iou_and_pairs_by_their_pixels() -> None:
    record, made = MaskRecord(segmentation()), batches(40, masks=True)
    recorded(record, made)
    gallery = mask_gallery(record, CLASSES, str)
    truth = torch.cat([batch.masks for batch, _ in made])  # type: ignore[misc]
    predicted = torch.cat([logits for _, logits in made]).argmax(1)
    known = truth != 255

    def iou(image: int, index: int) -> float:
        here, guess = truth[image] == index, (predicted[image] == index) & known[image]
        union = int((here | guess).sum())
        return int((here & guess).sum()) / union if union else float("nan")

    ious = np.array([[iou(image, index) for index in range(5)] for image in range(40)])
    np.testing.assert_allclose(record.ious, ious, rtol=1e-6)
    assert [one.number for one in gallery.worst] == np.nanmean(ious, 1).argsort(kind="stable")[:24].tolist()
    pixels = ((truth == 1) & (predicted == 3)).sum((1, 2))
    shown = [int(one.score.split()[0]) for one in gallery.pairs[1, 3]]
    assert shown == pixels.sort(descending=True).values[:4].tolist()
    assert [int(pixels[one.number]) for one in gallery.pairs[1, 3]] == shown


def test_a_class_that_is_left_out_is_counted_nowhere() -> None:
    made = batches(12, masks=True)
    without = [(replace(one, masks=torch.where(one.masks == 2, 255, one.masks)), logits) for one, logits in made]
    left_out, ignored = (MaskRecord(segmentation(ignore_index=index)) for index in (2, 255))
    recorded(left_out, made)
    recorded(ignored, without)
    np.testing.assert_array_equal(left_out.bins, ignored.bins)
    assert torch.equal(left_out.pair_pixels, ignored.pair_pixels)
    assert np.isnan(left_out.ious[:, 2]).all()  # where it is predicted, that is no mistake of the image
    np.testing.assert_array_equal(np.delete(left_out.ious, 2, 1), np.delete(ignored.ious, 2, 1))


def test_the_curve_has_the_calibration_error_of_the_metric() -> None:
    record, metric = LabelRecord(), ClassificationScores(5)
    for batch, logits in batches(300):
        record.add(batch, logits)
        metric.update(logits, batch.labels)
    curve = calibration(record.bins, "images")
    assert curve.error == pytest.approx(float(metric.compute()["calibration_error"]))
    assert curve.error == pytest.approx(float(calibration_error(torch.from_numpy(record.bins))))
    assert sum(count for *_, count in curve.points) == 300
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y, _ in curve.points)
