"""A worker's share of its node, and whether it feeds a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from datasets.config import DataConfig
from jobs.common.cli import parse_recipe
from jobs.plan import main as plan
from jobs.recipes.imagenet import efficientnetv2_m_paper, efficientnetv2_s_paper
from jobs.recipes.solar_cells import demo
from pipeline.config import TrainConfig
from pipeline.run.doctor import _loaders
from pipeline.run.node_share import cpu_share, loader_demand, unknown_share, with_node_share
from pipeline.run.provenance import recorded_config, run_fingerprint
from pipeline.run.shared_memory import ranks_of

POD = {"CPU": 44.0, "GPU": 4.0}
"""Of infra/kuberay/raycluster.yaml."""


def on_gpus(config: TrainConfig, gpus: float = 1, cpus: float = 0, loaders: int | None = None) -> TrainConfig:
    cluster = replace(config.cluster, num_workers=4, gpus_per_worker=gpus, cpus_per_worker=cpus)
    return replace(config, cluster=cluster, data=replace(config.data, loader_workers=loaders))


@pytest.mark.parametrize(
    ("gpus", "nodes", "cpus"),
    [
        (1, [POD], 10),
        (1, [POD, {"CPU": 33, "GPU": 4}, {"CPU": 64}], 8),  # of the node with the least; one without GPUs isn't asked
        (2, [POD], 21),
        (0.5, [POD], 5),
        (1, [{"CPU": 2, "GPU": 4}], 1),
        (8, [POD], 0),
        (1, [{"CPU": 64}], 0),
        (0, [POD], 0),
    ],
)
def test_a_worker_has_its_gpus_share_of_the_cpus(gpus: float, nodes: list[dict[str, float]], cpus: float) -> None:
    assert cpu_share(gpus, nodes) == cpus


def test_what_the_user_left_out_follows_from_the_nodes_and_the_rest_stays() -> None:
    config = efficientnetv2_s_paper()
    ready = with_node_share(on_gpus(config), [POD])
    assert (ready.cluster.cpus_per_worker, ready.data.loader_workers) == (10, 9)
    assert ranks_of(ready, POD) == 4
    assert with_node_share(on_gpus(config, cpus=6), [POD]).data.loader_workers == 5
    given = on_gpus(config, cpus=6, loaders=3)
    assert with_node_share(given, [POD]) == given
    nobody = with_node_share(on_gpus(config), [])  # an autoscaler hasn't started one yet
    assert (nobody.cluster.cpus_per_worker, nobody.data.loader_workers) == (1, 2)
    assert "gets 1 CPU and 2 loader processes" in unknown_share(on_gpus(config), [])
    assert unknown_share(on_gpus(config), [POD]) == unknown_share(on_gpus(config, cpus=6), []) == ""
    cpu = with_node_share(on_gpus(config, gpus=0), [{"CPU": 8}])
    assert (cpu.cluster.cpus_per_worker, cpu.data.loader_workers) == (1, DataConfig().num_loaders)


@pytest.mark.parametrize("recipe", [efficientnetv2_s_paper, demo])
@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_run_is_recognized_by_its_plan_whatever_node_it_had(recipe: Callable[[], TrainConfig], gpus: float) -> None:
    """A comparison plans runs where no node is known, and looks for what they recorded."""
    config = replace(recipe(), cluster=replace(recipe().cluster, gpus_per_worker=gpus))
    prints = {run_fingerprint(config, train="t", val="v")}
    for node in (POD, {"CPU": 8.0}):
        prints.add(run_fingerprint(recorded_config(with_node_share(config, [node])), train="t", val="v"))
    assert len(prints) == 1
    slower = replace(config, cluster=replace(config.cluster, cpus_per_worker=2))
    assert gpus or run_fingerprint(slower, train="t", val="v") not in prints


def test_a_run_from_before_a_field_is_recognized() -> None:
    config = demo()
    before = recorded_config(with_node_share(config, []))
    del before["data"]["aspect_ratio"], before["trainer"]["compile_mode"]
    before["cluster"]["cpus_per_worker"] = 1
    assert run_fingerprint(before, train="t", val="v") == run_fingerprint(config, train="t", val="v")


def test_the_stage_with_the_most_images_a_second_asks_for_the_most_processes() -> None:
    small, medium = loader_demand(efficientnetv2_s_paper()), loader_demand(efficientnetv2_m_paper())
    assert small.image_size == medium.image_size == 128
    assert small.gpu_rate == pytest.approx(950 * (300 / 128) ** 2, rel=0.001)
    assert medium.gpu_rate < 0.6 * small.gpu_rate
    assert (small.loaders, small.cpus) == (8, 9)
    assert loader_demand(efficientnetv2_s_paper(), copies=(160, 256)).loaders < small.loaders
    base = efficientnetv2_s_paper()
    assert loader_demand(replace(base, data=replace(base.data, aspect_ratio=2.0))).gpu_rate == pytest.approx(
        small.gpu_rate / 2, rel=0.02
    )


@pytest.mark.parametrize(("cpus", "cure"), [(44, ""), (16, "give the node 37 CPUs, or write smaller copies")])
def test_the_doctor_says_when_a_node_starves_its_gpus(cpus: float, cure: str) -> None:
    config = on_gpus(efficientnetv2_s_paper())
    nodes = {"node a": {"CPU": cpus, "GPU": 4.0}, "node b": {"CPU": 4.0}}
    (finding,) = _loaders(config, nodes)
    assert finding.name == "node a, loaders"
    assert f"{cpus:g} CPUs for 4 GPUs" in finding.text
    assert cure in finding.cure
    assert bool(cure) == bool(finding.cure)
    assert not list(_loaders(replace(config, cluster=replace(config.cluster, gpus_per_worker=0)), nodes))


def test_the_plan_says_how_many_cpus_a_gpu_needs(capsys: pytest.CaptureFixture[str]) -> None:
    plan(["efficientnetv2_s_paper", "--cluster.gpus-per-worker", "1", "--data.loader-workers", "2"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "a node needs 9 CPUs a GPU, but data.loader_workers is 2: leave it out, or set it to 8" in shown
    plan(["efficientnetv2_s_paper", "--trainer.compile", "True"])
    shown = capsys.readouterr().out
    assert "A100" not in shown
    assert "8 shapes or more are compiled" in shown  # four sizes, in training and in evaluations


def test_nothing_is_said_of_a_gpu_that_multiply_adds_do_not_limit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ramp.image-size", "16", "24", "--cluster.gpus-per-worker", "1", "--samples", "1000")
    plan(["fonts_small", *flags])
    assert "A100" not in capsys.readouterr().out
    config = parse_recipe(["fonts_small", *flags[:5]], prog="test")[0]
    assert loader_demand(config).gpu_rate > 100_000
    assert not list(_loaders(config, {"node a": POD}))


def test_the_flag_takes_a_number_or_none() -> None:
    for words, expected in (("None", None), ("5", 5)):
        config, _ = parse_recipe(["efficientnetv2_s_paper", "--data.loader-workers", words], prog="test")
        assert config.data.loader_workers == expected
