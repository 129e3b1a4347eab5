"""What is wrong with a benchmark's command line is one line, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.benchmark.__main__ import NAMES, main

MISTAKES = [
    *(
        (
            name,
            ["--wrong", "3"],
            rf"^Unrecognized options: --wrong \(.*jobs.benchmark {name} .*--help.* lists them\)$",
        )
        for name in NAMES
    ),
    ("checkpoint", ["--model", "nothing"], "^name=nothing: no such model"),
    ("checkpoint", ["--gap-s", "0"], r"^--gap-s 0\.0: must be above 0$"),
    ("checkpoint", ["--pin-server", "--storage", "runs"], r"^pin_server: it needs a server that is started here"),
    ("controller", ["--seconds", "long"], r"^--seconds: 'long' is not a number$"),
    ("controller", ["--operators", "0"], "^--operators 0"),
    ("loader", ["--image-sizes", "128", "0"], "^--image-sizes 128 0"),
    ("memory", ["--rounds", "0"], "^--rounds 0"),
    ("memory", ["--data", "nowhere"], "nowhere: no such shard or folder"),
    ("model", ["--names", "nothing"], "^name=nothing: no such model"),
    ("model", ["--device", "abacus"], "^device is 'abacus'"),
    ("overhead", ["nothing"], "^no recipe is named 'nothing'"),
    ("overhead", ["demo"], "data/elpv/train: no such shard or folder"),
    ("recovery", ["--rounds", "0"], "^--rounds 0"),
    ("recovery", [], "data/elpv/train: no such shard or folder"),
    ("growth", ["--ranks", "1000", "1"], "^--ranks 1000 1: each must be at least 16$"),
    ("growth", ["--busy-share", "1"], r"^--busy-share 1\.0: must be at most 0\.9$"),
    ("scaling", ["nothing"], "^no recipe is named 'nothing'"),
    ("scaling", ["--workers", "0"], "^--workers 0: must be at least 1"),
    ("scaling", [], "data/elpv/train: no such shard or folder"),
    ("stages", ["--epochs", "0"], "^--epochs 0"),
    ("stages", [], "data/elpv/train: no such shard or folder"),
]


@pytest.mark.parametrize(("name", "flags", "message"), MISTAKES)
def test_a_mistake_is_one_line(
    name: str, flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv])  # which `main` changes
    monkeypatch.chdir(tmp_path)  # no data here
    with pytest.raises(ValueError, match=message) as error:
        main([name, *flags])
    assert "\n" not in str(error.value)
