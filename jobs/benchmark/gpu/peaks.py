"""The peak speed of GPUs by name, for the utilization of what a model's operations need."""

from __future__ import annotations

import re

_NVIDIA = "https://www.nvidia.com/en-us/data-center"
PEAKS: tuple[tuple[frozenset[str], float, str], ...] = tuple(
    (frozenset(name.split()), tflops, source)
    for name, tflops, source in (
        ("B200", 2250.0, f"{_NVIDIA}/dgx-b200"),
        ("GB200", 2500.0, f"{_NVIDIA}/gb200-nvl72"),
        ("H200 NVL", 835.5, f"{_NVIDIA}/h200"),
        ("H200", 989.5, f"{_NVIDIA}/h200"),
        ("H100 NVL", 835.5, f"{_NVIDIA}/h100"),
        ("H100 PCIE", 756.5, "NVIDIA H100 PCIe GPU, product brief PB-11133-001"),
        ("H100", 989.5, f"{_NVIDIA}/h100"),
        ("A100", 312.0, f"{_NVIDIA}/a100"),
        ("A30", 165.0, f"{_NVIDIA}/products/a30-gpu"),
        ("A40", 149.7, f"{_NVIDIA}/a40"),
        ("A10", 125.0, f"{_NVIDIA}/products/a10-gpu"),
        ("L40S", 362.05, f"{_NVIDIA}/l40s"),
        ("L40", 181.05, f"{_NVIDIA}/l40"),
        ("L4", 121.0, f"{_NVIDIA}/l4"),
    )
)
"""Words of a device's name; 10^12 operations a second in bf16 on tensor cores, without sparsity (half of what a data
sheet prints with it); the data sheet. More special names come first."""
_PARTS_OF_A_CARD = frozenset({"MIG", "VGPU", "GRID"})


def peak_tflops(device: str) -> float | None:
    """Return the peak of a device by the name that CUDA has for it; None: it isn't in the table, or only a part of one.

    Words are compared whole: an A10G is no A10, whose clocks it doesn't have.
    """
    words = frozenset(re.split(r"[^A-Z0-9]+", device.upper()))
    if words & _PARTS_OF_A_CARD:
        return None
    return next((tflops for name, tflops, _ in PEAKS if name <= words), None)
