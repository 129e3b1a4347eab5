from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.recipes.catalog import RECIPES
from jobs.train import Options, extended


def test_extend_is_another_run_that_starts_from_the_end_of_the_first() -> None:
    config = replace(RECIPES["demo"](), name="mine", storage="s3://bucket/runs/")
    longer = extended(config, 2.5)
    assert (longer.name, longer.resume_from) == ("mine-plus-2.5", "s3://bucket/runs/mine")
    assert longer.stages[:-1] == config.stages[:-1]
    assert longer.stages[-1] == replace(config.stages[-1], epochs=config.stages[-1].epochs + 2.5)
    with pytest.raises(ValueError, match="leave out --resume-from"):
        extended(longer, 1)


@pytest.mark.parametrize("epochs", [-1, float("nan"), float("inf")])
def test_what_is_no_number_of_epochs_is_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match="it must be 0"):
        Options(extend=epochs)
