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
    REPLACE = 6
    CUTMIX = 7
    MIX_KIND = 8
    FLIP = 9
    IMAGE_SIZE = 10
    CLASS_ORDER = 11


def philox(seed: int, purpose: Purpose, *position: int) -> np.random.Philox:
    """Return the bit generator at up to three coordinates of a purpose; its streams are 2^64 blocks apart.

    Raises:
        OverflowError: a seed or coordinate outside [0, 2^64).
    """
    # Word 0 of the counter counts the numbers drawn.
    counter = np.array([0, *position, 0, 0, 0][:4], dtype=np.uint64)
    return np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64), counter=counter)


def sample_generator(seed: int, purpose: Purpose, stream_index: int) -> np.random.Generator:
    """Return the generator of one sample; equal arguments give equal numbers on any rank, worker or machine."""
    return np.random.Generator(philox(seed, purpose, stream_index))


def uniforms(seed: int, purpose: Purpose, stream_index: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` numbers in [0, 1) of each sample's own stream, float64 [B, count].

    The numbers are those of `sample_generator(seed, purpose, index).random(count)`; one bit generator that is set to
    each sample's stream costs a fraction of a new one for each.
    """
    raw = np.empty((len(stream_index), count), dtype=np.uint64)
    bits = philox(seed, purpose)
    state = bits.state
    for row, index in enumerate(stream_index.tolist()):
        state["state"]["counter"][1] = index
        bits.state = state
        raw[row] = bits.random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


def permutation(length: int, seed: int, purpose: Purpose, *position: int) -> np.ndarray:
    """Return a permutation of range(length), a function of the arguments only.

    Random high bits over the index in the low bits, sorted: NumPy promises the raw Philox stream to stay the same over
    its versions, which it does not for `Generator.permutation`, and this sort is no slower.
    """
    bits = max(1, (length - 1).bit_length())
    raw = philox(seed, purpose, *position).random_raw(length)
    low = np.uint64((1 << bits) - 1)
    raw &= ~low
    raw |= np.arange(length, dtype=np.uint64)
    raw.sort()
    raw &= low
    return raw.astype(np.uint32 if bits <= 32 else np.int64)
