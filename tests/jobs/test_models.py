import json

import pytest

from jobs.models import main, measure_all
from model import agreement
from model.agreement import Case
from model.published import PUBLISHED_FUSED_B4


def test_json_and_table_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["efficientnet_b0", "efficientnet_v2_tiny", "timm/mobilenetv3_small_050"]
    assert main([*names, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == names
    assert rows[0]["parameters"] == int(rows[0]["published_parameters"]) == 5_288_548
    assert rows[1]["published_size"] is None
    assert main(names) == 0
    table = capsys.readouterr().out
    assert "5.29" in table
    assert "0.386" in table
    assert "…" not in table


def test_an_unknown_model_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="efficientnet_b9: no such model; nearest"):
        main(["efficientnet_b9"])


@pytest.mark.soak
def test_all_models_and_the_papers_fused_table_are_listed() -> None:
    names = [row.name for row in measure_all()]
    assert len(names) == len(set(names))
    assert sum("fused" in name for name in names) == len(PUBLISHED_FUSED_B4)


@pytest.mark.soak
def test_logits_are_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-logits", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["case"]["library"] for row in rows] == ["torchvision"] * 3 + ["timm"] * 3
    assert all(row["float64"] < 1e-10 for row in rows)


def test_a_difference_is_told_and_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without the fields that torchvision's model needs, B0 has another epsilon in its norms.
    wrong = Case(name="efficientnet_b0", library="torchvision", theirs="efficientnet_b0", image_size=64)
    monkeypatch.setattr(agreement, "CASES", (wrong,))
    assert main(["--check-logits"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
