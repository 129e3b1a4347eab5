"""The device that a rank trains on: what it is, and with which algorithms it computes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

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


def nondeterministic_operation(error: BaseException) -> str:
    """Return the name of the operation whose lack of a deterministic algorithm is the error; empty: another error."""
    found = _NO_DETERMINISTIC.match(str(error))
    return found[1] if found else ""


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
