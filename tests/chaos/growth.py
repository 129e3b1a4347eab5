"""Whether processes grow over the rounds of a soak: their memory (PSS, in bytes) and their open file descriptors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import linear_regression, median

import psutil

from tests.support.beside import repeated

SAMPLE_EVERY_S = 5.0
ROUNDS = 6
"""From this many rounds on, growth is judged: thirds of two rounds have a run of each kind."""
SHARE, FREE_MB, FREE_HANDLES = 0.05, 20.0, 20.0
"""The last third's median may be above the first third's by this share, and by so much more."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a part of the run holds."""

    memory_mb: float
    handles: float

    @classmethod
    def of(cls, processes: Iterable[psutil.Process]) -> Usage:
        """Return that of the largest of these processes; they may end meanwhile."""
        found = [cls(0.0, 0.0)]
        for process in processes:
            try:
                found.append(cls(process.memory_full_info().pss / 1e6, process.num_fds()))
            except psutil.Error:
                continue
        return cls(max(usage.memory_mb for usage in found), max(usage.handles for usage in found))


@dataclass(frozen=True, slots=True)
class Trend:
    """One quantity over the rounds."""

    values: list[float]
    free: float
    """What it may rise by, besides `SHARE`."""

    @property
    def slope(self) -> float:
        """Rise a round, by least squares."""
        return linear_regression(range(len(self.values)), self.values).slope if len(self.values) > 1 else 0.0

    @property
    def is_flat(self) -> bool | None:
        """Whether the last third's median is about the first third's; None: too few rounds."""
        if len(self.values) < ROUNDS:
            return None
        third = len(self.values) // 3
        first, last = median(self.values[:third]), median(self.values[-third:])
        return last <= first * (1 + SHARE) + self.free


@dataclass(slots=True)
class Growth:
    """The highest usage of each part in each round."""

    rounds: list[dict[str, Usage]] = field(default_factory=list)

    @contextmanager
    def watching(self, parts: Mapping[str, Callable[[], Sequence[psutil.Process]]]) -> Iterator[None]:
        """Beside the body, which is one round: look at the processes of each part every few seconds."""
        seen: dict[str, list[Usage]] = defaultdict(list)

        def look() -> None:
            for name, processes in parts.items():
                with suppress(psutil.Error):  # a process ended while it was looked for
                    seen[name].append(Usage.of(processes()))

        with repeated(look, SAMPLE_EVERY_S):
            yield
        self.add(seen)

    def add(self, seen: Mapping[str, Sequence[Usage]]) -> None:
        """Add a round: of each part, what was seen of it, of which the highest counts."""
        tops = {
            name: Usage(max(usage.memory_mb for usage in found), max(usage.handles for usage in found))
            for name, found in seen.items()
        }
        self.rounds.append(tops)

    def trends(self) -> dict[str, Trend]:
        """Return each part's memory and handles over the rounds."""
        names = sorted({name for seen in self.rounds for name in seen})
        of = {name: [seen[name] for seen in self.rounds if name in seen] for name in names}
        return {
            **{f"{name}, MB": Trend([usage.memory_mb for usage in found], FREE_MB) for name, found in of.items()},
            **{
                f"{name}, handles": Trend([usage.handles for usage in found], FREE_HANDLES)
                for name, found in of.items()
            },
        }

    def grown(self, but: Sequence[str] = ()) -> list[str]:
        """Return what is not flat, in words, without the parts in `but`."""
        return [
            f"{name} grew: {' '.join(f'{value:.0f}' for value in trend.values)}"
            for name, trend in self.trends().items()
            if trend.is_flat is False and not name.startswith(tuple(but))
        ]
