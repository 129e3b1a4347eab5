"""The training loop's interface to the outside world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from datasets.loading.batch import Batch
from pipeline.checkpoint.format import Snapshot
from pipeline.schedule.decisions import Decision, DecisionRecord
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from pipeline.training.class_scores import ClassRow
from pipeline.training.final_scores import FinalScores


class TrainHooks:
    """What a run tells the outside world. `heartbeat`, `stage_started`, `stepped`, `save`, `stage_ended` and `reported`
    are called on every rank, the others on rank 0 only.
    """

    def heartbeat(self) -> None:
        """Something was done: a step, a batch of an evaluation, a decision point (so in a pause, too), a pass that
        looks for what fits into memory, a compilation. Where this isn't called for long, the rank hangs.
        """

    def stage_started(self, span: StageSpan, images: Tensor) -> None:
        """A stage begins; `images` are this rank's first ones as the network sees them, float [b, 3, H, W]."""

    def stage_ended(self, span: StageSpan, result: dict[str, float]) -> None:
        """A stage has ended and is on its way to storage; `result` has its times and newest metrics."""

    def stepped(self, batch: Batch, cursor: int) -> None:
        """The step at `cursor` is taken; `batch` is what this rank used for it."""

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """A row of metrics is ready."""

    def reported(self, cursor: int, wait_share: float) -> None:
        """This rank has trained up to `cursor`; it waited for data for this share of the time since the last report."""

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Say what all ranks do next; nothing: continue."""
        return ()

    def decided(self, records: Sequence[DecisionRecord]) -> None:
        """Something was decided: all recorded decisions so far, oldest first."""

    def noted(self, line: str) -> None:
        """Something that the user should know, in one line."""

    def profiled(self, trace: bytes) -> None:
        """The steps that the config asks for are profiled: a gzipped trace as Perfetto and Chrome show it."""

    def ended(self, pictures: Mapping[str, bytes]) -> None:
        """The last stage is over; `pictures` are PNGs of what was learned, by file name."""

    def weights_compared(self, scores: FinalScores) -> None:
        """The last stage is over: how good are the weights, and their moving average?"""

    def classes_evaluated(self, rows: Sequence[ClassRow]) -> None:
        """The last stage is over; a row a class of its last evaluation."""

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """A checkpoint is due; `snapshot` copies the state to host memory when called."""
