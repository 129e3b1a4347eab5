"""One rank of a worker group: what it is to do, and the data that it does it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.shards.manifest import DatasetManifest
from pipeline.checkpoint.head import Writer
from pipeline.config import TrainConfig
from pipeline.control.replies import JoinReply
from pipeline.run.controller_client import ControllerClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One rank of a worker group, and what it is to do."""

    config: TrainConfig
    controller: ControllerClient
    joined: JoinReply
    """What the controller has answered it."""
    number: int
    """From 0."""
    world_size: int
    last_stage: int
    """Index of the stage that the group trains up to."""
    report_stages: int
    """Ray Train hears of the ends of so many stages."""
    fingerprints: tuple[str, str]
    """Those that the run's data had when it was started; see `RunData.fingerprints`."""
    origin: Mapping[str, str]
    """Tags on where the run comes from."""
    node: str = ""
    """Number of its node in the group, as MLflow tells the load of several nodes apart; empty: there is one node."""
    local_number: int = 0
    """Of the ranks on its node, from 0."""
    writer: Writer | None = None
    """What rank 0 has claimed to write checkpoints; the other ranks write none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """What a rank knows of the samples before it reads one."""

    train: DatasetManifest
    val: DatasetManifest
    train_fingerprint: str
    """Of the training samples and their order."""

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Of the training samples and their order, and of the validation samples."""
        return self.train_fingerprint, self.val.fingerprint
