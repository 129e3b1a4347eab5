"""The device that a rank trains on: what it is, and with which algorithms it computes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import torch

from pipeline.training_config import TrainerConfig

_DRIVER = Path("/proc/driver/nvidia/version")
_NO_DETERMINISTIC = re.compile(r"^(\S+) does not have a deterministic implementation")


def choose_algorithms(*, deterministic: bool) -> None:
    """Have this process compute with deterministic algorithms only, or with the fastest: before its first use of a GPU.

    A CPU's algorithms are deterministic either way. Source: "Reproducibility" in PyTorch's notes; cuBLAS has to be told
    by a variable (`CUBLAS_WORKSPACE_CONFIG`), inductor by its own, since it measures reductions in each process.
    """
    torch.use_deterministic_algorithms(deterministic)
    # A debugging aid that costs a write a tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # A stage's shapes stay the same, so that the fastest is worth a look.
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")


class DeterminismError(ValueError):
    """A model has an operation without a deterministic algorithm on this device."""


@contextmanager
def operations_named() -> Iterator[None]:
    """Name the operation that has no deterministic algorithm.

    Raises:
        DeterminismError: there is one.
    """
    try:
        yield
    except RuntimeError as error:
        if found := _NO_DETERMINISTIC.match(str(error)):
            raise DeterminismError(
                f"trainer.deterministic is True, but {found[1]} has no deterministic algorithm on this device: set it "
                "to False, or take another model"
            ) from error
        raise


@contextmanager
def counting() -> Iterator[None]:
    """Let metrics count with any algorithm: whole numbers add up to the same in any order.

    A deterministic `index_add_` sorts all of an image's pixels first.
    """
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked)


@lru_cache
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers as a tensor [N] that stays on the device: to copy them in each step is to wait in each step."""
    with torch.inference_mode(False):  # it is kept for training, too
        return torch.tensor(values, dtype=dtype, device=device)


def eagerly(config: TrainerConfig) -> AbstractContextManager[object]:
    """Return a context in which a compiled model runs as it was written: for shapes that come once."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def begin_pass(config: TrainerConfig) -> None:
    """Say that nothing is needed any more of what CUDA graphs returned, gradients included: their memory is free."""
    if config.compile and config.compile_mode != "default":
        torch.compiler.cudagraph_mark_step_begin()


def accelerator(device: torch.device) -> str:
    """Return the GPU in words, with the libraries on which its bits depend; empty: a CPU."""
    if device.type != "cuda":
        return ""
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{torch.cuda.get_device_name(device)}, driver {_driver()}, {libraries}"


def _driver() -> str:
    """Return the version of NVIDIA's kernel module, which PyTorch doesn't know."""
    with suppress(OSError):
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text(encoding="utf-8"))
        if found:
            return found[0]
    return "unknown"
