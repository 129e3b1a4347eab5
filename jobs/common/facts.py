"""The facts that a generic recipe follows from: given by --facts, those that the run began with, or measured.

`resolved` puts them on the command line: whoever reads it later, on another machine or when the data has grown, makes
the same config of it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from infra.storage.base import MissingKeyError, Storage
from infra.storage.open import open_storage
from jobs.common.measured_facts import FactValues, data_facts, machine_facts, split_flags
from jobs.common.parsing import UsageError, parse_known
from jobs.recipes.facts import Facts
from jobs.recipes.generic import GENERIC, rules_of
from jobs.recipes.rules import Rules
from model.config import ModelConfig
from model.pretrained import NAMED_WEIGHTS
from pipeline.checkpoint.catalog import list_checkpoints
from pipeline.checkpoint.recorded_config import config_from
from pipeline.checkpoint.resume import is_weights_file, recorded_run
from pipeline.config import TrainConfig
from pipeline.sweep.config import PLAN_FILE

FILE = "facts.json"
"""In a run's folder: the facts that it began with."""
_KINDS = {name: type(value) for name, value in asdict(Facts()).items()}
_NAMES = [name.replace("_", "-") for name in _KINDS]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFlag:
    """The data of a run by one flag."""

    data: str = ""
    """Folder or s3://BUCKET/PREFIX that `jobs.prepare` wrote: short for --data.train DIR/train --data.val DIR/val."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FactsFlag:
    """What a generic recipe follows from, by one flag."""

    facts: str = ""
    """What the recipe follows from, such as samples=5000,cpus=8: of samples, classes, short-side (pixels), aspect-ratio
    (width / height), cpus, gpus, gpu-memory (GB), pixel-type and channels. What is left out is what the run began with,
    or else is measured on the data and on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _DataFields:
    train: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ModelFields:
    name: str = ""
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClusterFields:
    gpus_per_worker: float | None = None
    num_workers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """The fields of the run on which its recipe's other fields depend."""

    name: str = ""
    storage: str = "runs"
    data: _DataFields = field(default_factory=_DataFields)
    model: _ModelFields = field(default_factory=_ModelFields)
    cluster: _ClusterFields = field(default_factory=_ClusterFields)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A command line that doesn't depend any more on where and when it is read."""

    argv: list[str]
    notes: tuple[str, ...] = ()
    """Lines for the user."""


def resolved(argv: Sequence[str], *, suffix: str = "") -> Resolved:
    """Return `RECIPE [--field value ...]` with the two places of --data, and all facts of a generic recipe.

    Args:
        argv: the command line; a resolved one stays as it is.
        suffix: what the job adds to the name of the recipe's run.

    Raises:
        UsageError: --data is no prepared data; --facts is wrong; the data is of another kind than the recipe's task,
            or too few.
        DataError: the data can't be read.
    """
    recipe, *rest = argv
    flag, rest = parse_known(DataFlag, rest, prog=recipe)
    rest = [*split_flags(flag.data), *rest]
    if recipe not in GENERIC:
        return Resolved([recipe, *rest])
    given, rest = _given_facts(recipe, rest)
    kept: FactValues = {}
    if len(given) < len(_NAMES):
        kept = _kept(recipe, rest, suffix)
        given = {**(kept or _measured(recipe, rest, given)), **given}
    facts = Facts(**given)  # type: ignore[arg-type]
    again = "the facts are those that the run began with; with another --name they are measured again"
    return Resolved([recipe, *rest, "--facts", written(facts)], (again,) if kept else ())


def written(facts: Facts) -> str:
    """Return facts as --facts takes them."""
    return ",".join(f"{name.replace('_', '-')}={value}" for name, value in asdict(facts).items())


def rules_for(argv: Sequence[str]) -> Rules:
    """Return the rules that make the config of a generic recipe's resolved command line."""
    recipe, *rest = argv
    given, rest = _given_facts(recipe, rest)
    model = _fields_of(rest).model
    return rules_of(recipe, Facts(**given), model.init_from or "", model.name)  # type: ignore[arg-type]


def generic_config(argv: Sequence[str]) -> TrainConfig:
    """Return the config of a generic recipe's resolved command line, before other flags are applied.

    Raises:
        UsageError: weights are a file, and no --model.name says of which model.
        CheckpointError: weights are neither a file nor a run.
    """
    rules, fields_given = rules_for(argv), _fields_of(argv[1:])
    config = GENERIC[argv[0]](rules.facts, weights=rules.weights, model=rules.model)
    config = replace(config, name=_default_name(argv[0], fields_given.data.train))
    if rules.weights in ("", *NAMED_WEIGHTS) or rules.model:
        return config
    return _with_model_of(rules.weights, config)


def record_facts(argv: Sequence[str], storage: str, name: str) -> None:
    """Keep the facts of a resolved command line with the run, unless it has begun. Other recipes have none."""
    if argv[0] not in GENERIC:
        return
    place = open_storage(f"{storage}/{name}")
    if not _has_begun(place):
        place.write(FILE, json.dumps(asdict(rules_for(argv).facts), indent=1).encode())


def _given_facts(recipe: str, rest: Sequence[str]) -> tuple[FactValues, list[str]]:
    """Return the facts that --facts gives, and the other arguments."""
    flag, rest = parse_known(FactsFlag, rest, prog=recipe)
    found: FactValues = {}
    for part in filter(None, flag.facts.split(",")):
        name, _, value = part.partition("=")
        key = name.replace("-", "_")
        if name not in _NAMES:
            raise UsageError(f"--facts has {part!r}: it is NAME=VALUE,... of {', '.join(_NAMES)}")
        try:
            found[key] = _KINDS[key](value)
        except ValueError:
            raise UsageError(f"--facts has {part!r}: {value!r} is not a number") from None
    try:
        Facts(**found)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"--facts: {error}") from None
    return found, rest


def _fields_of(rest: Sequence[str]) -> _Given:
    return parse_known(_Given, rest, prog="")[0]


def _kept(recipe: str, rest: Sequence[str], suffix: str) -> FactValues:
    """Return the facts that the run began with; empty: it hasn't begun."""
    given = _fields_of(rest)
    name = given.name or _default_name(recipe, given.data.train) + suffix
    place = open_storage(f"{given.storage}/{name}")
    if not _has_begun(place):
        return {}
    try:
        return asdict(Facts(**json.loads(place.read(FILE))))
    except MissingKeyError:  # a run of another recipe, which the checks before a run compare with this one
        return {}


def _has_begun(place: Storage) -> bool:
    """Whether a run, or a study, has done something that other facts would not fit."""
    return bool(list_checkpoints(place)) or place.exists(PLAN_FILE)


def _measured(recipe: str, rest: Sequence[str], given: FactValues) -> FactValues:
    fields_given = _fields_of(rest)
    train = fields_given.data.train
    found = machine_facts(gpus=_gpus_asked_for(fields_given.cluster))
    if {"samples", "classes", "short_side"} <= given.keys():
        return found
    if not train:
        raise UsageError(f"{recipe} needs to know the data: --data DIR, which `python -m jobs.prepare` wrote")
    return found | data_facts(recipe, train, shapes="short_side" not in given)


def _gpus_asked_for(cluster: _ClusterFields) -> int | None:
    """Return how many GPUs the flags ask for; None: they say nothing of GPUs."""
    if cluster.gpus_per_worker is None:
        return None
    return max(cluster.num_workers or (1,)) if cluster.gpus_per_worker else 0


def _default_name(recipe: str, train: str) -> str:
    """Return the name of a generic recipe's run: the recipe's and the data's, such as `classify-mine`."""
    folder = train.split("::")[0].rstrip("/").removesuffix("/train").rpartition("/")[2]
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()  # ü as u
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")
    return f"{recipe}-{word}" if word else recipe


def _with_model_of(weights: str, config: TrainConfig) -> TrainConfig:
    """Return the config with model and normalization of the run whose weights it begins with."""
    if is_weights_file(weights):
        raise UsageError(
            f"init-from is {weights}: a file doesn't say of which model it is; add --model.name "
            "(`python -m jobs.models` lists them)"
        )
    recorded = recorded_run(weights, "model.init_from").config
    model = config_from(ModelConfig, recorded["model"] | {"init_from": weights, "frozen": False}, weights)
    pixels = {name: recorded["trainer"][name] for name in ("pixel_mean", "pixel_std")}
    return replace(config, model=model, trainer=replace(config.trainer, **pixels))
