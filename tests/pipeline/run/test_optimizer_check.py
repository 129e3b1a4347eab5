"""What an optimizer needs is known before a worker starts."""

from __future__ import annotations

import pytest

from pipeline.run import preflight
from pipeline.training_config import OptimizerConfig
from tests.support.configs import MakeConfig


def test_an_optimizer_of_timms_without_timm_is_refused_by_the_driver(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config = make_config(optimizer=OptimizerConfig(optimizer="lamb"))
    with pytest.raises(ValueError, match=r"^optimizer.optimizer is lamb, which timm has: `uv pip install timm`"):
        preflight.check_run(config)
