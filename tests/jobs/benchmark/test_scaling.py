import json
import math
from dataclasses import replace

import numpy as np
import pytest

from datasets.loading.sample_order import SampleOrder
from jobs.benchmark.scaling.main import main
from jobs.benchmark.scaling.model import Cluster, Compute, Data, Link, StageCost, predict, seconds_at, stage_traffic
from jobs.benchmark.scaling.options import Options, as_flags, compute, decoding
from jobs.common.cli import UsageError
from pipeline.schedule.stages import TrainingStage, ramp

GB = 1e9
STAGES = ramp(epochs=8, batch_size=1024, image_size=(128, 256), num_stages=2)
COMPUTE = Compute(fixed_s=0.01, points=((256, 1 / 1000),))
DATA = Data(
    samples_per_epoch=1_024_000,
    blocks_per_shard=4,
    bytes_per_image={0: 100_000.0},
    decode={0: ((128, 1 / 800), (256, 1 / 600))},
)
WIRE = Link(bytes_per_s=10 * GB, latency_s=1e-5)
CLUSTER = Cluster(gpus_per_node=8, cores_per_node=96, in_node=WIRE, between=WIRE)
GRADIENTS = 80e6


def cost(gpus: int, *, data: Data = DATA, cluster: Cluster = CLUSTER, part: Compute = COMPUTE) -> list[StageCost]:
    return predict(STAGES, gpus, compute=part, gradient_bytes=GRADIENTS, data=data, cluster=cluster)


def hours(costs: list[StageCost]) -> float:
    return sum(stage.seconds for stage in costs) / 3600


def test_every_image_is_trained_once_an_epoch_and_read_once_without_a_cache() -> None:
    for gpus in (1, 8, 64):
        costs = cost(gpus)
        assert sum(stage.images for stage in costs) == 8 * 1_024_000
        assert sum(stage.s3_bytes for stage in costs) == pytest.approx(8 * 1_024_000 * 100_000)
        assert all(stage.batch_per_gpu * gpus == 1024 for stage in costs)


def test_one_gpu_takes_its_steps_and_has_no_all_reduce() -> None:
    (stage, _) = cost(1)
    assert stage.exposed_s == 0
    assert stage.train_s == pytest.approx(0.01 + 1024 / 1000 / 4)  # a quarter of the pixels
    assert stage.seconds == pytest.approx(4000 * stage.train_s)
    assert stage.limit == "compute"


def test_a_ring_sends_nearly_twice_the_gradients_whatever_its_length() -> None:
    link = Link(bytes_per_s=1e9, latency_s=0)
    assert link.all_reduce_s(1, 1e9) == 0
    assert link.all_reduce_s(2, 1e9) == 1
    assert link.all_reduce_s(1000, 1e9) == pytest.approx(2, rel=0.01)
    assert Link(bytes_per_s=1e9, latency_s=1e-3).all_reduce_s(11, 0) == pytest.approx(0.02)


def test_more_of_anything_is_never_slower() -> None:
    slow = replace(CLUSTER, cores_per_node=8, s3_node_bytes_per_s=0.2 * GB, s3_total_bytes_per_s=GB)
    for name, factor in (
        ("cores_per_node", 2),
        ("s3_node_bytes_per_s", 2),
        ("s3_total_bytes_per_s", 2),
    ):
        better = replace(slow, **{name: getattr(slow, name) * factor})
        for gpus in (1, 8, 64, 512):
            assert hours(cost(gpus, cluster=better)) <= hours(cost(gpus, cluster=slow)), (name, gpus)
    times = [hours(cost(gpus)) for gpus in (1, 2, 4, 8, 16, 32, 64)]
    assert times == sorted(times, reverse=True)
    assert times[-1] > times[0] / 64  # and never faster than in proportion


def test_twice_the_bandwidth_of_s3_halves_the_time_where_s3_is_the_limit_and_nothing_elsewhere() -> None:
    starved = replace(CLUSTER, s3_node_bytes_per_s=0.01 * GB)
    once, twice = cost(8, cluster=starved), cost(8, cluster=replace(starved, s3_node_bytes_per_s=0.02 * GB))
    assert [stage.limit for stage in once] == ["S3", "S3"]
    assert hours(twice) == pytest.approx(hours(once) / 2)
    assert hours(cost(8, cluster=replace(CLUSTER, s3_node_bytes_per_s=100 * GB))) == hours(cost(8))


def test_the_cores_that_are_said_to_be_needed_are_just_enough() -> None:
    for index in range(2):
        needed = cost(8)[index].cores_per_gpu * 8
        enough = cost(8, cluster=replace(CLUSTER, cores_per_node=needed * 1.01))[index]
        short = cost(8, cluster=replace(CLUSTER, cores_per_node=needed * 0.9))[index]
        assert (enough.limit, short.limit) == ("compute", "decode cores")
        assert enough.seconds == pytest.approx(cost(8)[index].seconds)
        assert short.seconds == pytest.approx(enough.seconds / 0.9)


def test_a_fixed_batch_over_many_gpus_is_limited_by_what_does_not_shrink() -> None:
    # In one node of a fast wire the fixed part remains; over a slow network the all-reduce does.
    fast = replace(CLUSTER, between=Link(bytes_per_s=math.inf, latency_s=0))
    assert cost(512, cluster=fast)[0].limit == "batch per GPU"
    slow = replace(CLUSTER, between=Link(bytes_per_s=GB, latency_s=0))
    assert cost(512, cluster=slow)[0].limit == "all-reduce"
    hidden = replace(slow, overlap=1.0)
    assert cost(512, cluster=hidden)[0].exposed_s < cost(512, cluster=slow)[0].exposed_s
    # Within one node its own link counts, not the network.
    assert cost(8, cluster=slow) == cost(8)


def test_workers_that_decode_between_steps_take_both_times() -> None:
    beside = replace(CLUSTER, cores_per_node=8)
    between = replace(beside, decodes_beside=False)
    for one, other in zip(cost(8, cluster=beside), cost(8, cluster=between), strict=True):
        steps = one.images / 1024
        assert one.seconds == pytest.approx(steps * max(one.train_s, one.decode_s))
        assert other.seconds == pytest.approx(steps * (one.train_s + one.decode_s))


def test_a_cache_that_holds_everything_is_filled_once_by_each_node() -> None:
    whole = 1_024_000 * 100_000
    roomy = replace(CLUSTER, cache_bytes=2 * whole)
    alone = cost(8, cluster=roomy)
    assert (alone[0].s3_bytes, alone[1].s3_bytes) == (whole, 0)
    many = cost(64, cluster=roomy)
    assert whole < many[0].first_s3_bytes < 8 * whole
    assert sum(stage.s3_bytes for stage in many) <= 8 * whole
    small = [
        sum(stage.s3_bytes for stage in cost(8, cluster=replace(CLUSTER, cache_bytes=share * whole)))
        for share in (0.25, 0.5, 1)
    ]
    assert small == sorted(small, reverse=True)
    assert small[1] == pytest.approx(whole * (1 + 7 * 0.5))


def test_a_stage_that_reads_another_copy_begins_with_an_empty_cache() -> None:
    data = replace(
        DATA, bytes_per_image={0: 100_000.0, 160: 10_000.0}, decode={0: ((256, 1 / 600),), 160: ((128, 1 / 2000),)}
    )
    first, second = cost(8, data=data, cluster=replace(CLUSTER, cache_bytes=1e15))
    assert (first.copy, second.copy) == (160, 0)
    assert (first.s3_bytes, second.s3_bytes) == (1_024_000 * 10_000, 1_024_000 * 100_000)


@pytest.mark.parametrize("nodes", [2, 8, 32])
def test_nodes_fetch_the_share_of_the_shards_that_the_sample_order_deals_them(nodes: int) -> None:
    order = SampleOrder([1000] * 200, seed=3, num_lanes=nodes, block_size=250, window_blocks=4)
    shards = [len(np.unique(order.lane_samples(lane, 0, order.lane_length) // 1000)) for lane in range(nodes)]
    data = replace(DATA, samples_per_epoch=200_000, blocks_per_shard=4, bytes_per_image={0: 1.0})
    stage = TrainingStage(image_size=128, epochs=1, batch_size=1000)
    cluster = replace(CLUSTER, gpus_per_node=1, cache_bytes=1e15)
    traffic, _ = stage_traffic(stage, 0.0, nodes, data, cluster)
    assert sum(num_bytes for _, num_bytes in traffic) == pytest.approx(1000 * sum(shards), rel=0.05)


def test_sizes_between_two_points_are_linear_in_pixels_and_others_in_proportion() -> None:
    points = ((100, 1.0), (200, 2.0))
    assert [seconds_at(points, size) for size in (50, 100, 200, 400)] == [0.25, 1, 2, 8]
    assert 1 < seconds_at(points, 150) < 1.5
    assert seconds_at(points, 50, hold_below=True) == 1


def test_a_step_that_was_given_is_the_step_that_is_predicted() -> None:
    given = compute(Options(step_ms=("300:64:95", "128:64:25"), fixed_ms=5))
    assert given.step_s(300, 64) == pytest.approx(0.095)
    assert given.step_s(128, 64) == pytest.approx(0.025)
    assert compute(Options(images_per_s=("300:500",), fixed_ms=0)).step_s(150, 500) == pytest.approx(0.25)
    rates = ("128:700", "256:500", "128/160:2000")
    assert as_flags(decoding(Options(decode=rates))) == list(rates)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": (8, 0)}, r"--gpus 8 0: .*at least 1"),
        ({"step_ms": ("300:64",)}, "--step-ms 300:64: give PX:BATCH:MS"),
        ({"step_ms": ("300:64:5",)}, "no longer than --fixed-ms 10"),
        ({"step_ms": ("300:64:95",), "images_per_s": ("300:9",)}, "give one of them"),
        ({"images_per_s": ("300:0",)}, "above 0"),
        ({"images_per_s": ("300:1.2.3",)}, "give PX:RATE"),
        ({"decode": ("128/160:2000",)}, "no rate from the shards"),
        ({"copies": ("200:20",)}, "no rate from the copy of short side 200"),
        ({"overlap": 1.5}, "--overlap 1.5"),
        ({"s3_total_gbit": math.nan}, "--s3-total-gbit nan: must be above 0"),
        ({"samples": 1000}, "give both or neither"),
        ({"here": "nothing"}, "--here nothing"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**fields)


def test_imagenet_on_8_64_and_512_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "predict", "--data.cache-gb", "200", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["prediction"]
    assert predicted["gpu_speed_is_assumed"]
    assert predicted["gradient_bytes"] == 4 * 21_458_488
    assert any("512 GPUs need --data.num-lanes 512" in note for note in predicted["notes"])
    for gpus, stages in predicted["clusters"].items():
        assert [stage["image_size"] for stage in stages] == [128, 185, 243, 300]
        assert {stage["batch_per_gpu"] for stage in stages} == {4096 / int(gpus)}
    assert main(["--parts", "predict"]) == 0
    assert "ASSUMED, not measured" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--gpus 3: batch_size 4096"):
        main(["--parts", "predict", "--gpus", "3"])
