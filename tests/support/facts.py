"""Facts that a generic recipe may follow from."""

from __future__ import annotations

from hypothesis import strategies as st

from jobs.recipes.rules import Facts

FACTS = st.builds(
    Facts,
    samples=st.integers(24, 5_000_000),
    classes=st.integers(1, 20_000),
    short_side=st.integers(1, 6000),
    cpus=st.integers(1, 256),
    gpus=st.integers(0, 64),
    gpu_memory=st.floats(4, 200),
)
