"""A generic recipe's command line: measured once, frozen, kept with the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings

import jobs.plan
import jobs.submit
import jobs.train
from datasets.files.s3 import is_remote
from datasets.loading.reader import Sample, SampleReader
from infra.cluster.config import ClusterError
from infra.storage import lease as lease_module
from infra.storage.lease import Lease, LeaseError
from infra.storage.open import open_storage
from jobs.common import facts as facts_module
from jobs.common import measured_facts
from jobs.common.cli import default_config, parse_recipe, recipe_words, resolve
from jobs.common.facts import FILE, record_facts, rules_for, written
from jobs.common.measured_facts import LOOKED_AT
from jobs.common.parsing import UsageError, parse_known
from jobs.plan import PlanFlags
from jobs.recipes.facts import Facts
from jobs.recipes.generic import FITTING, GENERIC, TASKS
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.config import TrainConfig
from pipeline.run import launch
from pipeline.run.preflight import absolute, preflight
from pipeline.sweep.config import PLAN_FILE
from tests.support import facts as any_facts
from tests.support.bands import write_band_shards, write_masked_band_shards
from tests.support.runs import train_here
from tests.support.shards import write_mask_shards, write_multilabel_shards, write_shards, write_target_shards

FACTS = Facts(samples=500, classes=3, short_side=64, cpus=2)
WRITERS: dict[str, Callable[[Path, list[int]], Path]] = {
    "classification": write_shards,
    "segmentation": write_mask_shards,
    "multilabel": write_multilabel_shards,
    "regression": write_target_shards,
}


def prepared(folder: Path, kind: str = "classification") -> Path:
    for split, count in (("train", 60), ("val", 12)):
        WRITERS[kind](folder / split, [count])
    return folder


def parsed(*argv: str) -> TrainConfig:
    return parse_recipe(argv, prog="test")[0]


def machine(monkeypatch: pytest.MonkeyPatch, **found: float) -> None:
    known = {"cpus": 2, "gpus": 0, "gpu_memory": 0} | found
    monkeypatch.setattr(facts_module, "machine_facts", lambda gpus: known)


@pytest.mark.parametrize("recipe", GENERIC)
def test_data_alone_is_enough(recipe: str, tmp_path: Path) -> None:
    data = prepared(tmp_path / "mine", TASKS[recipe])
    config = parsed(recipe, "--data", str(data))
    assert (config.name, config.data.train, config.data.val) == (f"{recipe}-mine", f"{data}/train", f"{data}/val")
    facts = rules_for(resolve([recipe, "--data", str(data)]).argv).facts
    assert (facts.samples, facts.short_side) == (60, 48)


@pytest.mark.parametrize("container", ["npy", "tiff"])
def test_data_alone_is_enough_for_bands(container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, storage = tmp_path / "fields", str(tmp_path / "runs")
    for split, count in (("train", 60), ("val", 12)):
        write_band_shards(data / split, [count], container=container)
    machine(monkeypatch)
    argv = ["classify", "--data", str(data), "--storage", storage, "--ramp.stages", "1", "--epochs", "1"]
    begun = resolve(argv)
    facts = rules_for(begun.argv).facts
    assert (facts.samples, facts.short_side, str(facts.pixels)) == (60, 40, "5 channels of uint16")
    config = parsed(*begun.argv)
    assert (config.data.randaugment_policy, config.model.in_channels) == ("geometric", 5)
    assert parsed(*begun.argv, *facts.pixels.flags) == config  # as they were named before
    record_facts(begun.argv, storage, config.name)
    train_here(preflight(config, prepare_tracking=False).config)
    write_shards(data / "train", [60])
    assert rules_for(resolve(argv).argv).facts == facts
    kept = tmp_path / "runs" / config.name / FILE
    old = {name: value for name, value in asdict(facts).items() if name not in ("pixel_type", "channels")}
    kept.write_text(json.dumps(old))  # of a run that began before these were facts, by flags
    assert parsed(*argv, *facts.pixels.flags) == config


def test_bands_with_masks_need_no_flags_either(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_masked_band_shards(tmp_path / "mine" / split, 30)
    config = preflight(parsed("segment", "--data", str(tmp_path / "mine")), prepare_tracking=False).config
    assert (str(config.data.pixels), len(config.trainer.channel_mean)) == ("2 channels of float32", 2)
    assert jobs.plan.main(["segment", "--data", str(tmp_path / "mine")]) == 0


@pytest.mark.parametrize("kind", WRITERS)
def test_data_of_another_kind_are_one_line_that_names_the_right_recipe(kind: str, tmp_path: Path) -> None:
    data = prepared(tmp_path / "mine", kind)
    cure = FITTING.get(kind, "a recipe of your own, with that task")
    for recipe in GENERIC:
        if TASKS[recipe] == kind:
            continue
        with pytest.raises(UsageError) as caught:
            parsed(recipe, "--data", str(data))
        message = str(caught.value)
        assert message.endswith(f"/mine/train is for {kind}, and {recipe} is for {TASKS[recipe]}: take {cure}")
        assert "\n" not in message


def test_a_resolved_command_line_measures_nothing_more() -> None:
    argv = ["classify", "--data.train", "/nowhere/mine/train", "--facts", written(FACTS)]
    assert resolve(argv).argv == argv
    config = parsed(*argv)
    assert config.name == "classify-mine"
    assert rules_for(argv).facts == FACTS
    assert recipe_words(argv, PlanFlags) == shlex.join(argv)
    folder = ["--data.train", "/nowhere/Größe 2/train", "--facts", written(FACTS)]
    assert parsed("classify", *folder).name == "classify-Groe-2"


@settings(deadline=None, max_examples=20)
@given(any_facts.FACTS)
def test_facts_are_read_as_they_were_written(facts: Facts) -> None:
    assert rules_for(["classify", "--facts", written(facts)]).facts == facts


def test_single_facts_are_given_and_the_others_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(tmp_path / "mine")
    machine(monkeypatch, cpus=3)
    found = rules_for(resolve(["classify", "--data", str(data), "--facts", "samples=9000,short-side=300"]).argv).facts
    assert found == Facts(samples=9000, classes=4, short_side=300, cpus=3)
    asked = ["--cluster.gpus-per-worker", "1", "--cluster.num-workers", "2", "8"]
    monkeypatch.undo()
    found = rules_for(resolve(["classify", "--data", str(data), *asked]).argv).facts
    assert (found.gpus, found.gpu_memory) == (8, 16)  # those that are asked for, wherever they are


def test_a_run_resumes_with_the_config_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, storage = prepared(tmp_path / "mine"), str(tmp_path / "runs")
    argv = ["classify", "--data", str(data), "--storage", storage, "--ramp.stages", "1", "--epochs", "1"]
    machine(monkeypatch)
    begun = resolve(argv)
    config = parsed(*begun.argv)
    record_facts(begun.argv, storage, config.name)
    train_here(absolute(config))
    machine(monkeypatch, cpus=64, gpus=4, gpu_memory=80)
    again = resolve(argv)
    assert parsed(*again.argv) == config
    assert "those that the run began with" in again.notes[0]
    ready = preflight(config, prepare_tracking=False)
    assert ready.resume_from is not None
    assert not [note for note in ready.notes if "changed" in note]

    record_facts([*argv[:1], "--facts", written(FACTS)], storage, config.name)  # it has begun: they stay
    assert rules_for(resolve(argv).argv).facts.samples == 60
    (tmp_path / "runs" / config.name / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds a run of this name with another config"):
        preflight(parsed(*argv), prepare_tracking=False)


def test_facts_are_kept_by_the_submission_that_holds_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, storage = prepared(tmp_path / "mine"), str(tmp_path / "runs")
    argv = ["classify", "--data", str(data), "--storage", storage]

    def submit(cpus: int) -> None:
        machine(monkeypatch, cpus=cpus)
        jobs.train.main(argv)

    def no_cluster(*asked: object, **more: object) -> None:
        raise ClusterError("no cluster")

    def kept() -> int:
        return int(json.loads((tmp_path / "runs/classify-mine" / FILE).read_text())["cpus"])

    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    monkeypatch.setattr(launch, "connect", no_cluster)
    with pytest.raises(ClusterError, match="no cluster"):
        submit(cpus=8)
    assert not (tmp_path / "runs/classify-mine" / FILE).exists()  # what is refused leaves nothing
    monkeypatch.setattr(launch, "connect", lambda *asked, **more: "")
    monkeypatch.setattr(launch, "resources_of_nodes", lambda config: [])
    monkeypatch.setattr(launch, "free_reservations", no_cluster)
    with pytest.raises(ClusterError, match="no cluster"):
        submit(cpus=4)
    assert kept() == 4
    lease = Lease(open_storage(f"{storage}/classify-mine"))
    lease.take()
    lease.keep(lambda _: None)
    with pytest.raises(LeaseError):
        submit(cpus=2)
    assert kept() == 4
    lease.release()
    with pytest.raises(ClusterError, match="no cluster"):
        submit(cpus=3)
    assert kept() == 3  # nothing was trained with the others


def test_gpus_are_those_of_the_flag_else_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_facts, "_gpus_here", lambda: [80.0])
    argv = ["classify", "--data", str(prepared(tmp_path / "mine")), "--facts", "samples=500000,short-side=400"]

    def trained(*flags: str) -> tuple[int, str, float]:
        config = parsed(*argv, *flags)
        return rules_for(resolve([*argv, *flags]).argv).facts.gpus, config.model.name, config.cluster.gpus_per_worker

    assert trained() == (1, "efficientnet_v2_s", 1)
    for none in ("0", "0.0"):
        assert trained("--cluster.gpus-per-worker", none) == (0, "efficientnet_v2_tiny", 0)
    assert trained("--cluster.gpus-per-worker", "1", "--cluster.num-workers", "4") == (4, "efficientnet_v2_s", 1)


def test_a_study_has_the_facts_that_it_began_with(tmp_path: Path) -> None:
    argv = ["classify", "--data.train", "/nowhere/mine/train", "--storage", str(tmp_path)]
    record_facts([*argv, "--facts", written(FACTS)], str(tmp_path), "classify-mine-sweep")
    (tmp_path / "classify-mine-sweep" / PLAN_FILE).write_text("{}")
    again = resolve(argv, suffix="-sweep")
    assert rules_for(again.argv).facts == FACTS
    assert default_config(again.argv).name == "classify-mine"


def test_facts_that_were_never_trained_with_are_measured_again(tmp_path: Path) -> None:
    data, storage = prepared(tmp_path / "mine"), str(tmp_path / "runs")
    argv = ["classify", "--data", str(data), "--storage", storage]
    record_facts(["classify", "--facts", written(FACTS)], storage, "classify-mine")
    assert json.loads((tmp_path / "runs/classify-mine" / FILE).read_text()) == asdict(FACTS)
    assert rules_for(resolve(argv).argv).facts.samples == 60


def test_facts_of_data_in_s3_come_from_the_manifest_and_a_few_images(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "mine"
    write_shards(data / "train", [100, 100])
    write_shards(data / "val", [12])
    for file in sorted(data.rglob("*.*")):
        open_storage(f"{s3_uri}/mine/{file.parent.name}").upload(file.name, file)
    wanted: list[int] = []
    read_each = SampleReader.read_each

    def counted(self: SampleReader, sample_ids: Sequence[int]) -> Iterator[Sample]:
        wanted.extend(sample_ids)
        return read_each(self, sample_ids)

    monkeypatch.setattr(SampleReader, "read_each", counted)
    argv = resolve(["classify", "--data", f"{s3_uri}/mine/"]).argv
    facts = rules_for(argv).facts
    assert (facts.samples, facts.classes, facts.short_side) == (200, 4, 48)
    assert len(wanted) <= LOOKED_AT
    assert is_remote(parsed(*argv).data.val)


def test_a_submitted_job_carries_the_facts(tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--data", f"{s3_uri}/mine", "--storage", f"{s3_uri}/runs", "--tracking.uri", "http://127.0.0.1:1"]
    sent: list[str] = []
    monkeypatch.setattr(jobs.submit, "open_client", lambda dashboard: SimpleNamespace())
    monkeypatch.setattr(jobs.submit, "submit", lambda client, entrypoint, **more: sent.append(entrypoint))
    monkeypatch.setattr(jobs.submit, "job_page", lambda client, job_id: "")
    assert jobs.submit.main(["classify", *given, "--facts", "samples=500,classes=3,short-side=64", "--detach"]) == 0
    words = shlex.split(sent[0])
    assert words[:4] == ["python", "-m", "jobs.train", "classify"]
    assert resolve(words[3:]).argv == words[3:]
    facts = rules_for(words[3:]).facts
    assert (facts.samples, facts.classes, facts.short_side) == (500, 3, 64)


def test_the_model_is_that_of_the_run_whose_weights_it_begins_with(tmp_path: Path) -> None:
    data, storage = prepared(tmp_path / "mine"), str(tmp_path / "runs")
    first = parsed("classify", "--data", str(data), "--storage", storage, "--ramp.stages", "1", "--epochs", "1")
    train_here(first)
    weights = f"{storage}/{first.name}"
    config = parsed("finetune", "--data", str(data), "--init-from", weights)
    assert config.model == replace(first.model, init_from=weights)
    assert config.model.rows
    (tmp_path / "some.pth").write_bytes(b"")
    for value, message in ((str(tmp_path / "some.pth"), "add --model.name"), ("/nowhere", "nor a run with a valid")):
        with pytest.raises(ValueError, match=f"init.from is {value}: .*{message}"):
            parsed("finetune", "--data", str(data), "--init-from", value)


def test_data_that_are_not_prepared_are_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    data = prepared(tmp_path / "mine")
    for value, message in (
        (tmp_path / "photos", r"it holds no shards; prepare your images first: `python -m jobs\.prepare image-folder"),
        (tmp_path / "nowhere", "there is no such folder"),
        (data / "train", "that is one split; name the folder above it"),
    ):
        with pytest.raises(UsageError, match=message):
            parsed("classify", "--data", str(value))
    with pytest.raises(UsageError, match=r"^classify needs to know the data: --data DIR"):
        parsed("classify")


def test_data_that_are_too_few_are_one_line(tmp_path: Path) -> None:
    write_shards(tmp_path / "few/train", [20])
    write_shards(tmp_path / "few/val", [4])
    write_shards(tmp_path / "one/train", [30], classes=1)
    write_shards(tmp_path / "one/val", [4], classes=1)
    write_shards(tmp_path / "rare/train", [30], classes=31)
    write_shards(tmp_path / "rare/val", [4], classes=31)
    for name, message in (
        ("few", "has 20 images: a training needs at least 24"),
        ("one", "has one class, class 0"),
        ("rare", "class 'class 0' has 1 training image, and 2 are the least"),
    ):
        with pytest.raises(UsageError, match=message):
            parsed("classify", "--data", str(tmp_path / name))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("cpu=3", "^--facts has 'cpu=3': it is NAME=VALUE,... of samples, classes, short-side, aspect-ratio, cpus"),
        ("cpus", "^--facts has 'cpus': '' is not a number"),
        ("cpus=many", "'many' is not a number"),
        ("cpus=0", "^--facts: cpus is 0: it must be at least 1"),
        ("channels=5", "^--facts: channels is 5 and pixel-type rgb, which has 3: name both"),
        ("pixel-type=int16", "^--facts: pixel-type is 'int16': it must be one of rgb, uint8, uint16, float32"),
        ("gpu-memory=nan", "^--facts: gpu-memory is nan: it must be at least 0"),
    ],
)
def test_wrong_facts_are_one_line(facts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed("classify", "--facts", facts)


def test_data_is_short_for_two_places_with_every_recipe() -> None:
    argv = resolve(["demo", "--data", "s3://bucket/mine/", "--seed", "3"]).argv
    places = ["--data.train", "s3://bucket/mine/train", "--data.val", "s3://bucket/mine/val"]
    assert argv == ["demo", *places, "--seed", "3"]
    assert parse_known(PlanFlags, argv[1:], prog="")[1] == argv[1:]
