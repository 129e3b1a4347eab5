"""Counter-based randomness: what a draw is for and which sample it is for are its only inputs."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for; part of its key, so that no two uses share numbers."""

    BLOCKS = 1
    WINDOW = 2
    AUGMENT = 3
    MIXUP = 4
    RENDER = 5


def sample_generator(seed: int, purpose: Purpose, stream_index: int) -> np.random.Generator:
    """Return the generator of one sample; equal arguments give equal numbers on any rank, worker or machine."""
    # Word 0 of the counter counts the numbers drawn, word 1 the sample: 2^64 draws apart.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, stream_index, 0, 0]))
