from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import pipeline.inference.evaluation_data
import pipeline.inference.exported_model
from datasets.errors import DataAwayError
from infra.devstack.server import free_ports
from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.errors import TrackingError
from infra.tracking.registry import Registration, image_options
from infra.tracking.tracker import Tracker
from jobs.common.registration import DECODER, SERVED
from jobs.export import Options, best_of, main
from jobs.predict import main as predict
from pipeline.checkpoint.head import MANIFEST
from pipeline.inference.exported_model import ExportError, open_exported, write_exported
from pipeline.inference.norm_statistics import reestimate_saved
from pipeline.inference.predictor import open_predictor
from pipeline.inference.trained_model import SavedModel, open_saved
from tests.support.lineage import checkpoint
from tests.support.runs import TrainedRun
from tests.support.shards import image_of, png

ROOT = Path(__file__).parents[2]
NAMES = ("classifier.onnx", "classifier.pt2", "segmenter.onnx", "segmenter.pt2")


def test_only_what_was_compared_is_there(exported: dict[str, Path]) -> None:
    assert sorted(exported) == sorted(NAMES)  # and no temporary file beside


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_gives_the_checkpoints_logits(
    exported: dict[str, Path], name: str, count: int, request: pytest.FixtureRequest
) -> None:
    run: TrainedRun = request.getfixturevalue(f"trained_{name.partition('.')[0]}")
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 48, 48), dtype=np.uint8)
    logits = open_exported(exported[name])[1](images)
    expected = open_saved(str(run.folder)).logits(images)
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_inside(exported: dict[str, Path], name: str) -> None:
    facts, _ = open_exported(exported[name])
    of_masks = name.startswith("segmenter")
    assert facts["task"] == ("segmentation" if of_masks else "classification")
    assert facts["classes"] == (["low", "middle", "high"] if of_masks else [f"class {i}" for i in range(4)])
    assert facts["checkpoint"]["weights"] == "ema"
    view = facts["preprocessing"]
    assert view["transparency"] == "composed onto white"
    assert {"orientation", "depth", "colour"} <= {*view}
    assert (view["image_size"], view["pixel_mean"], view["pixel_std"]) == (48, 128.0, 128.0)
    assert (view["crop_fraction"], view["channel_order"]) == (1.0, "RGB")


def test_the_onnx_file_is_whole_and_its_batch_has_a_name(exported: dict[str, Path]) -> None:
    onnx.checker.check_model(exported["classifier.onnx"], full_check=True)
    model = onnx.load(exported["classifier.onnx"], load_external_data=False)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, 48, 48]
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["classes"])[0] == "class 0"


def test_a_model_with_other_results_is_not_kept(
    trained_classifier: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_mean(saved: SavedModel, path: Path) -> None:
        write_exported(replace(saved, preprocessing=replace(saved.preprocessing, pixel_mean=0.0)), path)

    monkeypatch.setattr(pipeline.inference.exported_model, "write_exported", without_mean)
    kept = tmp_path / "wrong.pt2"
    kept.write_bytes(b"an earlier export")
    with pytest.raises(ExportError, match="is not written: the exported model's logits differ"):
        main([str(trained_classifier.folder), "--to", str(kept)])
    assert kept.read_bytes() == b"an earlier export"
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt2"]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


Change = Callable[[dict[str, bytes], bytes, str], None]
"""Changes the entries of an archive; is given an evil pickle, and Python code of the same effect."""


def _set_json(entries: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> None:
    values = json.loads(entries[name])
    change(values)
    entries[name] = json.dumps(values).encode()


def _inputs(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    entries["data/sample_inputs/model.pt"] = evil


def _pickled_weight(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    name = "data/weights/model_weights_config.json"
    _set_json(entries, name, lambda values: next(iter(values["config"].values())).update(use_pickle=True))
    entries["data/weights/weight_0"] = evil


def _opaque_constant(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    name = "data/constants/model_constants_config.json"
    _set_json(entries, name, lambda values: values["config"].update(c=entry))
    entries["data/constants/opaque_obj_0"] = evil


def _expression(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    forged = re.sub(rb"Symbol\('\w+', positive=True, integer=True\)", code.encode(), entries["models/model.json"])
    assert code.encode() in forged
    entries["models/model.json"] = forged


def _guard(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    _set_json(entries, "models/model.json", lambda program: program.update(guards_code=[f"{code} is None"]))


def _function(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    text = {"name": "", "arg": {"as_string": f"touch {code.split(chr(39))[-2]}"}, "kind": 1}
    call = {"target": "torch.os.system", "inputs": [text], "outputs": [], "metadata": {}, "name": "evil"}
    node = {**call, "is_hop_single_tensor_return": None}
    _set_json(entries, "models/model.json", lambda program: program["graph_module"]["graph"]["nodes"].insert(0, node))


def _library(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    entries["data/aotinductor/model/model.so"] = b"\x7fELF"


def _older_format(entries: dict[str, bytes], evil: bytes, code: str) -> None:
    del entries["archive_version"]  # the loader then takes it for a file of PyTorch 2.7
    entries["../version"] = b"8.20"
    entries["../serialized_exported_program.json"] = entries["models/model.json"]
    for name in ("state_dict", "constants", "example_inputs"):
        entries[f"../serialized_{name}.pt"] = evil


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_inputs, "Weights only load failed"),
        (_pickled_weight, "holds pickled objects"),
        (_opaque_constant, "opaque_obj_0, which no model needs"),
        (_expression, "is not a formula"),
        (_guard, ""),
        (_function, r"calls 'torch\.os\.system'"),
        (_library, r"model\.so, which no model needs"),
        (_older_format, "which no model needs"),
    ],
)
def test_nothing_in_a_pt2_file_runs(exported: dict[str, Path], tmp_path: Path, change: Change, message: str) -> None:
    forged, touched = tmp_path / "forged.pt2", tmp_path / "touched"
    stream = io.BytesIO()
    torch.save((_Evil(touched),), stream)
    with zipfile.ZipFile(exported["classifier.pt2"]) as old:
        entries = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    evil = pickle.dumps(_Evil(touched)) if change is _opaque_constant else stream.getvalue()
    change(entries, evil, f"__import__('pathlib').Path.touch(__import__('pathlib').Path('{touched}'))")
    with zipfile.ZipFile(forged, "w") as new:
        for name, data in entries.items():
            new.writestr(f"model/{name}".replace("model/../", ""), data)
    if message:
        with pytest.raises(ExportError, match=message) as error:
            open_exported(forged)
        assert "\n" not in str(error.value)
    else:  # what is left out, the model doesn't need
        run = open_exported(forged)[1]
        run(np.zeros((2, 3, 48, 48), dtype=np.uint8))
    assert not touched.exists()


def test_statistics_that_were_estimated_again_are_exported(trained_classifier: TrainedRun, tmp_path: Path) -> None:
    path, images = tmp_path / "model.onnx", np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    assert main([str(trained_classifier.folder), "--to", str(path), "--image-size", "64", "--reestimate-bn", "60"]) == 0
    saved = open_saved(str(trained_classifier.folder), image_size=64)
    exported = open_exported(path)[1](images)
    assert np.abs(exported - saved.logits(images)).max() > 0.01
    options = {"url": "", "device": torch.device("cpu"), "batch_size": 64, "loader_workers": 0}
    reestimate_saved(saved, 60, **options)
    np.testing.assert_allclose(exported, saved.logits(images), rtol=1e-3, atol=1e-4)


ROUNDING = {"turned.png": 2e-3, "large.jpg": 0.01}
"""Where the project resizes before it turns, and decodes at a smaller scale: by how much its probabilities differ."""
CONSUMER = re.search(r"^```python\n(.*?)^```", (ROOT / "docs/models.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_documented_consumer_predicts_the_same_without_this_project(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CONSUMER
    saved, model = open_saved(str(trained_classifier.folder)), tmp_path / "cells.pt2"
    # A part of the image and no square: whoever gets either wrong sees other pixels.
    view = replace(saved.preprocessing, aspect_ratio=4 / 3, eval_crop="central")
    write_exported(replace(saved, preprocessing=view), model)
    (tmp_path / "use.py").write_text(CONSUMER[1])
    image = Image.fromarray(image_of(1, 5, height=150, width=111))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", exif=turned)
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    clear.save(tmp_path / "clear.png")
    image.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.resize((64, 48)).save(tmp_path / "photo.jpg", quality=95)
    image.resize((640, 480)).save(tmp_path / "large.jpg", quality=95)
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg"))
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(
        [sys.executable, "use.py", *names], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert shown.returncode == 0, shown.stderr
    theirs = [line.split("\t") for line in shown.stdout.splitlines()]
    assert predict([str(model), *(str(tmp_path / name) for name in names), "--top", "1", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    for name, (their_name, label, score), answer in zip(names, theirs, ours, strict=True):
        best = answer["labels"][0]
        assert (their_name, label) == (name, best["label"])
        assert float(score) == pytest.approx(best["probability"], abs=ROUNDING.get(name, 1e-4)), name


@pytest.mark.parametrize(("precision", "suffix"), [("fp16", ".onnx"), ("fp16", ".pt2"), ("int8", ".onnx")])
def test_a_smaller_model_is_scored_beside_its_checkpoint(
    trained_classifier: TrainedRun,
    exported: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    suffix: str,
) -> None:
    path = tmp_path / f"small{suffix}"
    told = [str(trained_classifier.folder), "--to", str(path), "--precision", precision]
    assert main([*told, "--max-drop", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"accuracy 0\.\d+, the checkpoint's 0\.\d+, on 30 images of .*/val", shown)
    assert re.search(r"one image takes [\d.]+ ms on the CPU, the checkpoint [\d.]+ ms", shown)
    assert path.stat().st_size < 0.8 * exported[f"classifier{suffix}"].stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    facts, run = open_exported(path)
    assert (facts["precision"], facts["classes"][0]) == (precision, "class 0")
    assert run(np.zeros((3, 3, 48, 48), dtype=np.uint8)).shape == (3, 4)


def test_a_smaller_model_that_loses_too_much_is_not_written(
    trained_classifier: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_mean(saved: SavedModel, path: Path, precision: str) -> None:
        write_exported(replace(saved, preprocessing=replace(saved.preprocessing, pixel_mean=255.0)), path, precision)

    monkeypatch.setattr(pipeline.inference.exported_model, "write_exported", without_mean)
    with pytest.raises(ExportError, match=r"is not written: accuracy .*; --max-drop allows 0\.01") as error:
        main([str(trained_classifier.folder), "--to", str(tmp_path / "m.pt2"), "--precision", "fp16"])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        (["--data", "s3://b/away"], "name data for the comparison with --data"),
        (["--precision", "int8", "--train-data", "s3://b/away"], "name them with --train-data"),
    ],
)
def test_data_that_are_away_for_now_are_not_taken_for_wrong_ones(
    flags: list[str], cure: str, trained_classifier: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = pipeline.inference.evaluation_data.open_data

    def open_data(saved: SavedModel, place: str, **options: Any) -> Any:
        if place == "s3://b/away":
            raise DataAwayError(f"{place}: no answer")
        return there(saved, place, **options)

    monkeypatch.setattr(pipeline.inference.evaluation_data, "open_data", open_data)
    with pytest.raises(DataAwayError, match=f"^s3://b/away: no answer; .*{cure}$"):
        main([str(trained_classifier.folder), "--to", str(tmp_path / "m.onnx"), *flags])


def test_mistakes_are_one_line(trained_classifier: TrainedRun, tmp_path: Path) -> None:
    run = str(trained_classifier.folder)
    for arguments, message in (
        ([run, "--to", "model.pb"], r"to is 'model\.pb': name a file that ends in \.onnx or \.pt2"),
        ([run, "--to", str(tmp_path / "no/model.onnx")], "no doesn't exist; make it first"),
        (
            [run, "--to", str(tmp_path / "m.onnx"), "--data", str(tmp_path)],
            "name data for the comparison with --data",
        ),
        ([run, "--to", "m.pt2", "--precision", "int8"], r"to is 'm\.pt2': int8 is for \.onnx files"),
        ([run, "--to", "m.pt2", "--alias", "a"], "alias is 'a': it needs --register NAME"),
        ([run, "--to", "m.onnx", "--register", "solar/cells"], "register is 'solar/cells': MLflow's names have no '/'"),
        ([run, "--to", "m.onnx", "--register", "m", "--alias", "a b"], "alias is 'a b': MLflow takes letters, digits"),
        ([run, "--to", "m.onnx", "--register", "m", "--alias", "v1"], "alias is 'v1': .* keeps `latest` and versions"),
        ([run, "--to", "m.onnx", "--max-drop", "2"], r"max_drop is 2\.0"),
        (
            [run, "--to", str(tmp_path / "m.onnx"), "--precision", "int8", "--train-data", str(tmp_path / "none")],
            "int8 needs training images: name them with --train-data",
        ),
        ([str(tmp_path), "--to", str(tmp_path / "m.onnx")], "holds no valid checkpoint"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            main(arguments)
        assert "\n" not in str(error.value)
    for name in ("text.onnx", "text.pt2"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(ExportError, match=name):
            open_exported(tmp_path / name)


def test_the_best_checkpoint_of_an_experiment_is_taken(
    sqlite_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(tmp_path / "recorded")
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False), "recorded", storage=storage)
    there, gone = tmp_path / "solar", tmp_path / "gone"
    kept = [
        replace(model, uri=f"{run}/checkpoints/{model.step}-e1")
        for run, model in (
            (there, checkpoint(24, 0.5)),
            (there, checkpoint(48, 0.7)),
            (there, checkpoint(72, 0.6)),
            (gone, checkpoint(96, 0.8, run="gone")),
        )
    ]
    for model in kept[:3]:
        manifest = Path(model.uri) / MANIFEST
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"files": {"state.json": {"bytes": 1, "sha256": ""}}}))
    for model in kept:
        tracker.log_metrics({"val/accuracy": model.metrics["val/accuracy"]}, model.step)
    tracker.log_checkpoints(kept)
    assert tracker.close()
    options = Options(best_of="crescendo", metric="val/accuracy", to="model.onnx", tracking_uri=sqlite_uri)
    assert best_of(options) == kept[1].uri
    absent = tmp_path / "absent.db"
    with pytest.raises(TrackingError, match=f"{absent}: there is no such file: name the MLflow server"):
        best_of(Options(best_of="crescendo", to="model.onnx", tracking_uri=f"sqlite:///{absent}"))
    assert not absent.exists()
    said = capsys.readouterr().out
    assert f"note: {kept[3].uri} is better by val/accuracy, but is not there any more\n" in said
    assert f"best of 'crescendo': {kept[1].uri}, val/accuracy 0.7000" in said
    shutil.rmtree(there)
    with pytest.raises(TrackingError, match=r"none of its 4 best checkpoints is there any more, such as .*/gone/"):
        best_of(options)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ([], "a checkpoint or --best-of EXPERIMENT is needed, and there is neither"),
        (["demo", "--best-of", "solar"], "there is both 'demo' and --best-of: name one"),
        (["demo", "--metric", "val/loss"], "metric is 'val/loss': it needs --best-of EXPERIMENT"),
    ],
)
def test_either_a_checkpoint_or_an_experiment_is_named(told: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        main([*told, "--to", "model.onnx"])


def test_a_registered_model_is_logged_with_its_run_and_has_a_signature(
    trained_classifier: TrainedRun,
    sqlite_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)  # as MLflow itself sets it here: undone after the test
    folder = tmp_path / "runs" / "recorded"
    shutil.copytree(trained_classifier.folder / "checkpoints", folder / "checkpoints")
    told = [str(folder), "--to", str(tmp_path / "model.onnx"), "--register", "shapes", "--alias", "best"]
    told += ["--tracking-uri", sqlite_uri]
    with pytest.raises(ValueError, match="no run of the experiment 'crescendo'"):
        main(told)
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False), "recorded", storage=open_storage(folder))
    assert tracker.close()
    assert main(told) == 0
    assert "registered as version 1 of 'shapes'" in capsys.readouterr().out
    client = mlflow.MlflowClient(sqlite_uri, sqlite_uri)
    version = client.get_model_version("shapes", "1")
    assert version.run_id == tracker.run_id
    assert client.get_model_version_by_alias("shapes", "best").version == version.version
    content = (tmp_path / "model.onnx").read_bytes()
    assert version.tags["sha256"] == hashlib.sha256(content).hexdigest()
    assert (version.tags["size_bytes"], version.tags["score_metric"]) == (str(len(content)), "val/accuracy")
    assert 0.5 < float(version.tags["score"]) <= 1
    assert version.tags["checkpoint"].startswith(f"{folder}/checkpoints/")
    assert f"val/accuracy {version.tags['score']}. Exported from `{folder}" in version.description
    recorded = client.get_run(version.run_id)
    assert recorded.info.status == "FINISHED"
    (logged,) = client.search_logged_models([recorded.info.experiment_id])
    assert logged.artifact_location.startswith(f"{tmp_path}/artifacts/")
    model = mlflow.onnx.load_model("models:/shapes/1")
    assert model.graph.input[0].name == "images"
    signature = mlflow.models.get_model_info("models:/shapes/1").signature
    assert signature.inputs.input_names() == ["images"]
    assert signature.outputs.inputs[0].shape == (-1, 4)


@pytest.mark.parametrize("bands", [False, True])
def test_a_model_of_images_names_every_package_that_its_script_imports(bands: bool, tmp_path: Path) -> None:
    registration = Registration(
        name="m", alias="", description="", tags={}, image_shape=(32, 32), num_outputs=2, step=0,
        dtype="float32" if bands else "uint8",
        channels=5 if bands else 3, bands=bands, dense=False, labels="one", serves=SERVED, code=(DECODER,),
    )  # fmt: skip
    required = set(image_options(tmp_path / "m.onnx", registration, tmp_path)["pip_requirements"])
    for_bands = {"tifffile", "imagecodecs"}  # the second one is imported by the first
    assert required >= for_bands if bands else not required & for_bands
    packages = packages_distributions()
    imported = imports_from(SERVED, set()) - {"datasets", "mlflow"}  # MLflow is there where a model is served
    assert imported > {"PIL", "numpy", "onnxruntime", "tifffile"}
    for name in imported - sys.stdlib_module_names:
        assert required & {package.lower() for package in packages[name]} or name in for_bands, name


def imports_from(file: Path, seen: set[Path]) -> set[str]:
    """Return the packages that a file imports, and those that the decoder's files which it imports do."""
    seen.add(file)
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
            other = ROOT / f"{node.module.replace('.', '/')}.py"
            if other.parent == DECODER and other not in seen:
                found |= imports_from(other, seen)
    return found


@pytest.mark.soak
def test_a_registered_model_of_images_is_served_without_this_project(
    trained_classifier: TrainedRun, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    folder, image = tmp_path / "runs" / "recorded", tmp_path / "0.png"
    shutil.copytree(trained_classifier.folder / "checkpoints", folder / "checkpoints")
    tracker = Tracker(TrackingConfig(uri=sqlite_uri, system_metrics=False), "recorded", storage=open_storage(folder))
    assert tracker.close()
    told = [str(folder), "--to", str(tmp_path / "model.onnx"), "--register", "photos", "--register-as", "images"]
    assert main([*told, "--alias", "champion", "--tracking-uri", sqlite_uri]) == 0
    image.write_bytes(png(image_of(1, 5)))
    expected = open_predictor(str(tmp_path / "model.onnx")).predict([image.read_bytes()])[0]
    port = free_ports(1)
    (tmp_path / "empty").mkdir()
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": sqlite_uri}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/photos@champion"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port)],
            cwd=tmp_path / "empty", env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        row = [base64.b64encode(image.read_bytes()).decode()]
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [row, row]}}).encode()
        first, second = _asked(f"http://127.0.0.1:{port}/invocations", body, server, tmp_path / "log")["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert first == second
    assert not isinstance(expected, ValueError)
    assert first["label"] == f"class {expected.scores.argmax()}"
    np.testing.assert_allclose(first["scores"], expected.scores, atol=1e-5)


def _asked(url: str, body: bytes, server: subprocess.Popen[bytes], log: Path) -> Any:
    """Return the server's answer, once it is up."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
