from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from infra.cluster.logs import PACKAGES, add_to_log, log_as_json


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_record_is_a_line_with_run_rank_and_stage(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json(run="other", rank=3)
    log_as_json(run="mine", rank=1)  # takes the place of the one before
    add_to_log(stage=2)
    log = logging.getLogger("pipeline.run.worker")
    log.info("checkpoint %s is complete", "a/b", extra={"cursor": 48})
    try:
        raise ValueError("three\nlines\nlong")
    except ValueError:
        log.exception("it failed")
    logging.getLogger("ray").warning("not ours")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{"))
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO", "logger": "pipeline.run.worker", "run": "mine", "rank": 1, "stage": 2, "cursor": 48,
        "message": "checkpoint a/b is complete",
    }  # fmt: skip
    assert "three\nlines" in second["exception"]
