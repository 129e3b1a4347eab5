"""Metrics between two log rows: sums on the device, times on the host."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from datasets.loading.batch import Batch, DamagedSample


class Meter:
    """Gathers a log interval's terms on the device, and its times on the host."""

    def __init__(self, device: torch.device, samples_per_epoch: int) -> None:
        self.device, self.samples_per_epoch = device, samples_per_epoch
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now."""
        self._sums: dict[str, Tensor] = {}
        self._steps, self._wait_s, self._started = 0, 0.0, time.perf_counter()
        self.damaged: list[DamagedSample] = []
        self._cpu_started = time.process_time()

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, counting the time that they were waited for and the corrupt samples in them."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self._wait_s += time.perf_counter() - started
            if batch is None:
                return
            self.damaged += batch.damaged
            yield batch

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's terms."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    @property
    def steps(self) -> int:
        """Steps of the interval so far."""
        return self._steps

    @property
    def wait_share(self) -> float:
        """Share of the interval in which this rank waited for data."""
        return self._wait_s / max(time.perf_counter() - self._started, 1e-9)

    def row(self, batch_size: int, cursor: int) -> tuple[dict[str, float], dict[int, int]]:
        """Return the interval's means over all ranks, its rates, seconds, samples and memory; corrupt samples by epoch.

        `cpu_s` are the CPU seconds of all ranks' processes, without those of loader processes: other programs on the
        machine change them less than `seconds`.
        """
        cpu_s = time.process_time() - self._cpu_started
        epochs = range(
            (cursor - self._steps * batch_size) // self.samples_per_epoch, cursor // self.samples_per_epoch + 1
        )
        found = Counter(sample.stream_index // self.samples_per_epoch for sample in self.damaged)
        counts = torch.tensor([cpu_s, self._wait_s, *(found[epoch] for epoch in epochs)], device=self.device)
        sums = torch.cat([torch.stack(list(self._sums.values())).float(), counts])
        if dist.is_initialized():
            dist.all_reduce(sums)
            sums /= dist.get_world_size()
        values = sums.tolist()
        cpu_s, wait_s, *by_epoch = values[len(self._sums) :]
        seconds, samples = time.perf_counter() - self._started, self._steps * batch_size
        row = {f"train/{name}": value / self._steps for name, value in zip(self._sums, values, strict=False)}
        row["train/images_per_s"] = samples / seconds
        row["train/data_wait_share"] = wait_s / seconds
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        damaged = {epoch: round(count * ranks) for epoch, count in zip(epochs, by_epoch, strict=True)}
        row["train/damaged_samples"] = sum(damaged.values())
        row |= {
            "seconds": seconds,
            "samples": samples,
            "cpu_s": cpu_s * ranks,
            "peak_bytes": peak_bytes(self.device),
        }
        return row, damaged


def peak_bytes(device: torch.device) -> int:
    """Return the most memory so far: the device's that PyTorch used, on a CPU the process's whole one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
