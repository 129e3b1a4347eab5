"""The page that `jobs.evaluate --report` writes."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms.formats import IGNORED
from jobs.evaluate import main
from pipeline.inference.class_report import evaluate_saved
from pipeline.inference.evaluation_data import open_data
from pipeline.inference.mistakes import record_for
from pipeline.inference.report_page import Evaluated, page
from pipeline.inference.trained_model import open_saved
from pipeline.task_config import ClassificationConfig, SegmentationConfig
from pipeline.training.figures import palette
from pipeline.training.task import build_task
from tests.support.pages import Page
from tests.support.runs import TrainedRun
from tests.support.shards import image_of, png

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "dl", "dt", "dd", "div", "b", "span", "p"),
    *("figure", "i", "figcaption", "br", "small", "table", "thead", "tr", "th", "td", "a", "svg", "rect"),
    *("path", "polyline", "circle", "text", "details", "summary", "code"),
}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><b onmouseover='alert(3)'>",
    "{{ 7 * 7 }} & {% raw %} %s",
)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_every_link_has_its_pictures_and_nothing_is_fetched(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: TrainedRun = request.getfixturevalue(f"trained_{kind}")
    told = [str(run.folder), "--data", str(run.data / "val"), "--loader-workers", "0", "--report", str(tmp_path / "r")]
    assert main([*told, "--tta", "flip"]) == 0
    assert f"report: {tmp_path}/r/report.html" in capsys.readouterr().out
    text = (tmp_path / "r/report.html").read_text()
    shown = Page(text)
    assert shown.tags <= TAGS
    links = {value.removeprefix("#") for value in shown.values("href")}
    assert links
    assert links == {one for one in shown.values("id") if one.startswith("p")}
    used = {one for value in shown.values("class") for one in value.split() if re.fullmatch(r"s\d+", one)}
    assert used == set(re.findall(r"\.(s\d+) \{ background-image: url\(data:image/", text))
    assert "http" not in re.sub("http-equiv", "", text)
    assert re.search(r"\b000000\d\d\b", shown.text)
    assert ": sample" not in shown.text
    assert any(re.search(r"part-000000\.tar: sample '000000\d\d'$", title) for title in shown.values("title"))
    for part in ("Worst mistakes", "Confusions", "Calibration", "Classes", "Mistakes by class"):
        assert part in shown.text


def test_names_are_text_whatever_is_in_them(trained_classifier: TrainedRun, tmp_path: Path) -> None:
    saved = open_saved(str(trained_classifier.folder))
    saved = replace(saved, task=build_task(ClassificationConfig(), HOSTILE))
    rows = []
    for number in range(24):
        name = f"{number} '\"><script>alert(4)&amp;.png"
        (tmp_path / name).write_bytes(png(image_of(number % 3, number)))
        rows.append('"' + name.replace('"', '""') + f'",{number % 4}')
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    data = open_data(saved, str(tmp_path / "t.csv"), loader_workers=0)
    record, device = record_for(saved.task), torch.device("cpu")
    report = evaluate_saved(saved, data, device=device, observe=record.add)
    found = Evaluated(saved=saved, data=data, report=report, record=record, device=device, command="<i>&</i>")
    shown = Page(page(found))
    assert shown.tags <= TAGS
    assert not [name for name, _ in shown.attributes if name.startswith("on") or name == "src"]
    for name in HOSTILE:
        assert name in shown.text
    assert "'\"><script>alert(4)&amp;.png" in shown.text
    assert "<i>&</i>" in shown.text


def test_pixels_of_a_class_that_is_left_out_are_black(trained_segmenter: TrainedRun) -> None:
    saved = open_saved(str(trained_segmenter.folder))
    saved = replace(saved, task=build_task(SegmentationConfig(ignore_index=1), saved.task.classes))
    data = open_data(saved, str(trained_segmenter.data / "val"), loader_workers=0)
    record, device = record_for(saved.task), torch.device("cpu")
    report = evaluate_saved(saved, data, device=device, observe=record.add)
    text = page(Evaluated(saved=saved, data=data, report=report, record=record, device=device, command=""))
    black, left_out = (tuple(colour) for colour in palette(3)[[IGNORED, 1]].tolist())
    truths, guesses = set[object](), set[object]()
    for encoded in re.findall(r"data:image/png;base64,([\w+/=]+)", text):
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        for colours, left in ((truths, 50), (guesses, 100)):  # 48 px wide, 2 px apart
            colours |= {*map(tuple, np.asarray(image)[:, left : left + 48].reshape(-1, 3).tolist())}
    assert black in truths & guesses
    assert left_out not in truths
