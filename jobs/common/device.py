"""The device of a job whose user may choose one."""

from __future__ import annotations

from typing import Any


def chosen_device(name: str) -> Any:
    """Return the torch device of this name, or the best that there is.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}: {str(error).splitlines()[0]}") from None
    return device
