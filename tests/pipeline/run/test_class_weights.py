from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.shards.resolve import load_manifest
from pipeline.run.class_weights import inverse_frequencies, positive_weights, weight_lines, with_class_weights
from pipeline.task_config import ClassificationConfig, MultilabelConfig, SegmentationConfig
from tests.support.shards import write_mask_shards, write_multilabel_shards, write_rare_shards


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_inverse_frequencies_have_mean_one_over_the_samples_and_equal_sums_by_class(counts: list[int]) -> None:
    weights = np.array(inverse_frequencies(counts))
    assert np.dot(weights, counts) / sum(counts) == pytest.approx(1, rel=1e-3)
    sums = [weight * count for weight, count in zip(weights, counts, strict=True) if count]
    assert max(sums) == pytest.approx(min(sums), rel=1e-3)


def test_positive_weights_are_negatives_over_positives_with_a_limit() -> None:
    assert positive_weights([50, 25, 1, 0, 100], 100, most=20) == (1.0, 3.0, 20.0, 1.0, 1.0)


def test_auto_is_counted_of_the_data(tmp_path: Path) -> None:
    folder, data = write_multilabel_shards(tmp_path / "train", [16]), DataConfig()
    task = with_class_weights(MultilabelConfig(positive_weights="auto"), data, load_manifest(str(folder)))
    assert isinstance(task, MultilabelConfig)
    assert task.positive_weights == (1.0, 1.0, 1.0)  # of 16 images 8 have each class
    rare = write_rare_shards(tmp_path / "rare", [40, 40])
    mixture = load_manifest(f"{rare}::{rare}", weights=(1, 0.5))
    weighted = with_class_weights(ClassificationConfig(class_weights="auto"), data, mixture)
    assert weight_lines(weighted, mixture.classes) == ["task.class_weights: rarest 13.33, rare 3.333, usual 0.381"]
    assert weight_lines(ClassificationConfig(), mixture.classes) == []


def test_pixels_are_counted_by_the_data_report(tmp_path: Path) -> None:
    manifest, auto = (
        load_manifest(str(write_mask_shards(tmp_path / "train", [8]))),
        SegmentationConfig(class_weights="auto"),
    )
    with pytest.raises(DataError, match=r"task.class_weights is auto, but .*train have no one count of the pixels"):
        with_class_weights(auto, DataConfig(), manifest)
    shares = {"low": 0.6, "middle": 0.2, "ignored": 0.2}
    counted = replace(manifest, source={"report": {"pixels": {"train": shares, "test": {"high": 1.0}}}})
    task = with_class_weights(auto, DataConfig(), counted)
    assert isinstance(task, SegmentationConfig)
    assert task.class_weights == (0.6667, 2.0, 1.0)
    left_out = with_class_weights(replace(auto, ignore_index=0), DataConfig(), counted)
    assert isinstance(left_out, SegmentationConfig)
    assert left_out.class_weights == (1.0, 1.0, 1.0)  # of the one class that is left


def test_a_part_of_a_folder_of_several_labels_is_not_counted(tmp_path: Path) -> None:
    folder = write_multilabel_shards(tmp_path / "train", [16, 8])
    part = load_manifest(f"{folder}/part-000000.tar")
    with pytest.raises(DataError, match=r"counted for a whole folder only.*give the weights as numbers"):
        with_class_weights(MultilabelConfig(positive_weights="auto"), DataConfig(), part)
