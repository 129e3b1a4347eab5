"""Made-up words that belong to one split each, so that no training word occurs in validation."""

from __future__ import annotations

import hashlib

import numpy as np

_VAL_SHARE = 0.25


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _parts("b c d f g h j k l m n p qu r s t v w x y z br ch cl cr dr fl fr gr pl pr sh sl sp st str th tr wh")
_NUCLEI = _parts("a e i o u ai au ea ee ia ie oa oo ou ue")
_CODAS = ("", "", "", *_parts("b ck d ff g l ll m n nd ng nk p r rk s ss st t tch x z"))


def random_word(split: str, generator: np.random.Generator) -> str:
    """Make up a word of two or three syllables that belongs to `split`: lower case, capitalized or capitals."""
    while True:
        syllables = int(generator.integers(2, 3, endpoint=True))
        picks = generator.random((syllables, 3))
        word = "".join(_pick(_ONSETS, a) + _pick(_NUCLEI, b) + _pick(_CODAS, c) for a, b, c in picks)
        style = generator.random()
        if word_split(word) == split:
            return word.upper() if style < 0.2 else word.capitalize() if style < 0.5 else word


def word_split(word: str) -> str:
    """Return the split that a word belongs to, however it is capitalized; its hash decides."""
    digest = hashlib.sha256(word.lower().encode()).digest()
    return "val" if digest[0] < 256 * _VAL_SHARE else "train"


def _pick(options: tuple[str, ...], draw: float) -> str:
    return options[int(draw * len(options))]
