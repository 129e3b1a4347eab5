"""Ranks as real processes of torch.distributed, without Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

IMPORTED = ("pytest", "hypothesis", "tests.support.trainers")
"""What ranks need, which to import takes seconds."""


def on_ranks(world_size: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `work(*args)` returns on each of `world_size` ranks over gloo; it is a module's function.

    Ranks are forked from a process that has imported what they need and done nothing else, once a pytest process.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([*IMPORTED])
    mp.start_processes(  # type: ignore[attr-defined]
        _rank, (world_size, str(folder), work, args), nprocs=world_size, start_method="forkserver"
    )
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    torch.save(work(*args), f"{folder}/{rank}")
    dist.destroy_process_group()
