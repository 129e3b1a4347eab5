"""Architecture search without a cluster: space, reward, Pareto front, rows as JSON and text, the latency table."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.cli import parse_recipe
from jobs.common.study_report import search_files
from jobs.recipes.solar_cells import demo_scratch
from model.config import ModelConfig, architecture_of
from model.factory import build_model
from model.latency import LatencyTable, Workload, measure_table
from model.rows import rows_as_json, rows_as_table, rows_from_json
from model.tables import ARCHITECTURES, Block
from pipeline.search.reward import Candidate, pareto_front, reward
from pipeline.search.space import choices, distributions, point_of, rows_of
from pipeline.sweep.ledger import Record
from pipeline.sweep.strategy import RandomStrategy, mutated, random_point
from pipeline.sweep.study import Study

BASE = ARCHITECTURES["efficientnet_v2_tiny"].blocks


@pytest.mark.parametrize("name", ["efficientnet_v2_tiny", "efficientnet_v2_s", "efficientnet_b0", "efficientnet_lite0"])
def test_the_base_is_a_point_of_its_own_space(name: str) -> None:
    base = ARCHITECTURES[name].blocks
    assert rows_of(base, point_of(base)) == base
    space = distributions(base)
    assert all(found._contains(found.to_internal_repr(point_of(base)[key])) for key, found in space.items())


def test_candidates_can_be_built_and_keep_strides_and_channels() -> None:
    source = random.Random(0)
    for _ in range(5):
        rows = rows_of(BASE, mutated(random_point(distributions(BASE), source), distributions(BASE), source))
        assert [(row.stride, row.channels) for row in rows] == [(row.stride, row.channels) for row in BASE]
        model = build_model(ModelConfig(name="efficientnet_v2_tiny", rows=rows), num_classes=3).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_rows_in_a_config_take_the_place_of_the_tables(tmp_path: Path) -> None:
    rows = (*BASE[:4], replace(BASE[4], layers=7, kernel=5))
    (tmp_path / "rows.json").write_text(rows_as_json(rows))
    config, _ = parse_recipe(["demo_scratch", "--model-rows", str(tmp_path / "rows.json"), "--seed", "3"], prog="test")
    assert config.model.rows == rows
    assert config.seed == 3
    architecture = architecture_of(config.model)
    assert architecture is not None
    assert architecture.blocks == rows
    assert architecture.stem == ARCHITECTURES["efficientnet_v2_tiny"].stem


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "jobs.search"), ("[]", "no rows"), ('[{"operator": "Conv"}]', "list of rows"), ("missing", "rows.json")],
)
def test_a_wrong_rows_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    if text != "missing":
        path.write_text(text)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        parse_recipe(["demo_scratch", "--model-rows", str(path)], prog="test")
    assert str(path) in str(caught.value)


def test_rows_are_for_efficientnets_and_not_beside_fused_rows() -> None:
    with pytest.raises(ValueError, match="EfficientNets only"):
        ModelConfig(name="resnet50", rows=BASE)
    with pytest.raises(ValueError, match="leave them out"):
        ModelConfig(name="efficientnet_v2_tiny", rows=BASE, fused_rows=(4,))


def test_printed_rows_are_python_that_makes_the_same_rows() -> None:
    scope: dict[str, object] = {"Block": Block}
    exec(rows_as_table(BASE), scope)
    assert scope["_SEARCHED"] == BASE
    assert rows_from_json(rows_as_json(BASE)) == BASE


def test_the_reward_is_the_papers() -> None:
    assert reward(0.8, 1, 1) == 0.8
    assert reward(0.8, 2, 1) == pytest.approx(0.8 * 2**-0.07)
    assert reward(0.8, 1, 3) == pytest.approx(0.8 * 3**-0.05)


points = st.tuples(*[st.integers(0, 4)] * 3)


@given(st.lists(points, min_size=1, max_size=20))
def test_the_front_holds_exactly_what_nothing_beats(values: list[tuple[int, int, int]]) -> None:
    candidates = [Candidate(number, *value) for number, value in enumerate(values)]
    front = pareto_front(candidates)
    assert front
    assert not any(one.beats(other) for one in candidates for other in front)
    for one in candidates:
        assert one in front or any(other.beats(one) for other in front)
    assert [one.step_ratio for one in front] == sorted(one.step_ratio for one in front)


def test_the_table_says_the_bases_own_time_exactly_and_adds_up_blocks() -> None:
    base = BASE[:2]
    config = ModelConfig(name="efficientnet_v2_tiny", rows=base)
    every = [("Fused-MBConv", 3, 1), ("Fused-MBConv", 3, 4)]
    table = measure_table(config, every, Workload(batch_size=2, image_shape=(32, 32), num_classes=3, repeats=1))
    assert set(table.blocks) == {(row, *choice, first) for row in (0, 1) for choice in every for first in (True, False)}
    deeper = (base[0], replace(base[1], layers=4))
    extra = 2 * table.blocks[1, "Fused-MBConv", 3, 4, False]
    assert extra > 0
    assert table.estimate(deeper) == pytest.approx(table.estimate(base) + extra)
    assert LatencyTable.from_json(table.to_json()) == table


def test_every_choice_of_the_space_is_in_the_tables_choices() -> None:
    source, every = random.Random(0), set(choices(BASE))
    for _ in range(20):
        for row in rows_of(BASE, random_point(distributions(BASE), source)):
            assert (row.operator, row.kernel, row.expansion) in every


def test_the_report_has_the_winners_rows_and_the_front(tmp_path: Path) -> None:
    config = replace(demo_scratch(), name="search", storage=str(tmp_path))
    study = Study(
        kind="search",
        base=config,
        space=distributions(BASE),
        strategy=RandomStrategy(distributions(BASE), seed=0),
        configure=lambda point: replace(config, model=replace(config.model, rows=rows_of(BASE, point))),
        score=lambda metrics, figures: reward(
            metrics["val/accuracy"], figures["step_ratio"], figures["parameter_ratio"]
        ),
        score_name="reward",
    )
    figures = [(0.5, 1.0), (0.6, 2.0), (0.5, 3.0), (0.4, 0.5)]  # accuracy, step time; the third is beaten by the first
    points = [point_of(BASE), *(study.strategy.ask() for _ in figures[1:])]
    records = [
        Record(
            number=number,
            name=f"search-{number:03d}",
            point=point,
            state="finished",
            stages=[{"val/accuracy": accuracy}],
            figures={"step_ms": 10 * step, "step_ratio": step, "parameters": 1e6, "parameter_ratio": 1.0},
        )
        for number, (point, (accuracy, step)) in enumerate(zip(points, figures, strict=True))
    ]
    files = search_files(study, records, "demo_scratch", lambda point: rows_of(BASE, point))
    assert rows_from_json(files["rows.json"]) == rows_of(BASE, points[1])
    assert [name for name in files if name.startswith("front/")] == [
        "front/rows-003.json",
        "front/rows-000.json",
        "front/rows-001.json",
    ]
    assert rows_as_table(rows_of(BASE, points[1])) in files["report.md"].decode()
    assert "--model-rows" in files["report.md"].decode()
    assert {"pareto-step-ms.png", "pareto-parameters.png"} <= set(files)
