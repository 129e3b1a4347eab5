"""Requests the next segment's nodes while the current one still trains, since an autoscaler takes minutes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from infra.cluster.config import REQUEST_EXPIRES_S
from pipeline.control.status import seconds_left
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import Segment

AskNodes = Callable[[Segment, int], None]
"""Asks for the nodes of a segment, besides so many workers that are there."""

ASK_AGAIN_S = REQUEST_EXPIRES_S / 2
"""Pause between two requests for the same nodes: an autoscaler forgets one after a while."""


class NodesAhead:
    """Asks for the nodes of the segment that comes next.

    Args:
        segments: those that the run has still to train.
        ask: asks an autoscaler, in a thread of its own.
        ahead_s: how long before the segment begins.
    """

    def __init__(self, segments: Sequence[Segment], ask: AskNodes, ahead_s: float) -> None:
        self._segments, self._ask, self._ahead_s = segments, ask, ahead_s
        self._first, self._asked_s = -1, 0.0

    def look(self, progress: Progress, seen: dict[str, float]) -> None:
        """Ask if the next segment is about to begin, as the pace and the metrics seen so far say."""
        following = next((segment for segment in self._segments if segment.first > progress.stage), None)
        if following is None:
            return
        if following.first == self._first and time.monotonic() - self._asked_s < ASK_AGAIN_S:
            return
        left_s = seconds_left(progress, seen)
        if left_s and sum(left_s[: following.first]) <= self._ahead_s:
            self._first, self._asked_s = following.first, time.monotonic()
            threading.Thread(target=self._ask, args=(following, progress.num_workers), daemon=True).start()
