"""Facts that a generic recipe may follow from."""

from __future__ import annotations

from hypothesis import strategies as st

from jobs.recipes.facts import Facts

_PIXELS = st.one_of(
    st.just(("rgb", 3)), st.tuples(st.sampled_from(["uint8", "uint16", "float32"]), st.integers(1, 300))
)
FACTS = st.builds(
    lambda pixels, **others: Facts(pixel_type=pixels[0], channels=pixels[1], **others),
    _PIXELS,
    samples=st.integers(24, 5_000_000),
    classes=st.integers(1, 20_000),
    short_side=st.integers(1, 6000),
    aspect_ratio=st.one_of(st.just(1.0), st.floats(0.1, 10)),
    cpus=st.integers(1, 256),
    gpus=st.integers(0, 64),
    gpu_memory=st.floats(4, 200),
)
