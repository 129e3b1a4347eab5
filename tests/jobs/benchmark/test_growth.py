"""The simulation of many ranks, shards and readers, at sizes that take seconds."""

from __future__ import annotations

import json

import pytest

from jobs.benchmark.growth import Curve, Findings, main, plot
from jobs.benchmark.growth_control import LOAD, control_cost
from jobs.benchmark.growth_data import bytes_per_sample, data_cost
from jobs.benchmark.growth_requests import request_cost


def test_every_value_of_every_node_arrives_once() -> None:
    cost = control_cost(ranks=32, hours=80 / 3600)
    assert cost.values == 8 * (30 + 3 * len(LOAD))  # a row of rank 0 and the loads of three other nodes, in 8 ticks
    assert cost.doubled == 0
    assert min(cost.cpu_s.values()) > 0
    assert len(cost.rss_mb) == 8


def test_a_killed_indexing_continues_and_any_position_has_a_first_batch() -> None:
    cost = data_cost(64)
    assert cost.killed_at == 32
    assert 0 <= cost.read_again <= 32
    assert cost.order_cpu_s.keys() == {"start", "half an epoch", "90 epochs"}


def test_an_index_takes_little_more_memory_than_its_rows_and_keys() -> None:
    assert 36 < bytes_per_sample(20) < 50


def test_readers_of_a_busy_server_lose_nothing() -> None:
    cost = request_cost(6, 5, busy_share=0.4, latency_s=0.0)
    assert (cost.reads, cost.lost) == (30, 0)
    assert cost.requests > cost.reads
    assert cost.most_requests > 1


def test_one_command_prints_curves_and_draws_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "checkpoints", "--checkpoints", "2", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(curve["what"], curve["sizes"]) for curve in found["curves"]] == [("one more checkpoint", [2, 8])]
    curve = Curve(what="a", per="ranks", sizes=(1, 10), cpu_s=(2.0, 200.0))
    assert curve.exponent == pytest.approx(2)
    assert plot(Findings(curves=[curve], rss_mb={"1": (1.0, 2.0)}, facts={})).startswith(b"\x89PNG")
