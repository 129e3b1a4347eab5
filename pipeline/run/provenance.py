"""The origin of a run: its config as plain values, library versions, and how two configs differ."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets.config import DEFAULT_LOADERS
from infra.redact import redacted_values

HARMLESS = (
    *("cluster", "tracking", "checkpoint", "storage", "resume_from", "trainer.log_every", "trainer.profile_steps"),
    *("data.train", "data.val", "data.loader_workers", "data.prefetch_batches"),  # the data's fingerprint is compared
    *("data.cache_dir", "data.cache_gb"),
)
"""Fields that a resumed run may change, and every stage's `num_workers`: they don't change what is learned from."""

_MANY = 16


def config_values(config: Any) -> Any:
    """Return a config as JSON values, nested as its dataclasses are."""
    if is_dataclass(config):
        return {field.name: config_values(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, list | tuple):
        return [config_values(item) for item in config]
    return config


def recorded_config(config: Any) -> dict[str, Any]:
    """Return a config as it is written down: plain values, without users, passwords and keys."""
    values: dict[str, Any] = redacted_values(config_values(config))
    return values


def with_defaults(values: Any, config: Any) -> Any:
    """Return recorded values with this version's default of each field that the version which wrote them didn't have.

    Args:
        values: as `recorded_config` wrote them.
        config: a config of the same shape, of this version.
    """
    if isinstance(values, dict) and is_dataclass(config):
        missing = {field.name: _default(field) for field in fields(config) if field.name not in values}
        known = {name: with_defaults(value, getattr(config, name, None)) for name, value in values.items()}
        return known | {name: config_values(value) for name, value in missing.items() if value is not MISSING}
    if isinstance(values, list) and isinstance(config, list | tuple):
        return [with_defaults(*pair) for pair in zip(values, config, strict=False)] + values[len(config) :]
    return values


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def flat_values(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to `a.b.0.c` keys; a long list of numbers, one for each class, stays one value."""
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list) and not (len(values) > _MANY and all(isinstance(one, float) for one in values)):
        items = list(enumerate(values))
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flat_values(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return {field: (old, new)} of two configs' values."""
    before, after = flat_values(old), flat_values(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


LEFT_TO_THE_NODE = {"cluster.cpus_per_worker": 0, "data.loader_workers": None}
"""Values of a submitted config for which a run records what its node has: see `node_share`."""


def resume_differences(recorded: Any, config: Any) -> dict[str, tuple[Any, Any]]:
    """Return {field: (old, new)} of a run's recorded config and the submitted one that resumes it.

    What the submitted one leaves to the node is none: the recorded one has what its node had, or a number that was
    given then, and these can't be told apart.
    """
    changes = differences(with_defaults(recorded, config), recorded_config(config))
    return {
        key: change
        for key, change in changes.items()
        if key not in LEFT_TO_THE_NODE or change[1] != LEFT_TO_THE_NODE[key]
    }


def described(changes: dict[str, tuple[Any, Any]], limit: int = 4) -> str:
    """Return differences in words: `seed: 0 -> 1, ...`."""
    shown = ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in list(changes.items())[:limit])
    return shown + (f" and {len(changes) - limit} more" if len(changes) > limit else "")


def breaking(changes: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Keep the differences with which a run can't continue as the same run."""
    return {
        key: change
        for key, change in changes.items()
        if ".num_workers." not in f"{key}." and not any(f"{key}.".startswith(f"{name}.") for name in HARMLESS)
    }


CONDITIONS = (
    *("cluster.num_workers", "cluster.cpus_per_worker", "cluster.gpus_per_worker", "trainer.profile_steps"),
    *("data.loader_workers", "data.prefetch_batches", "data.cache_dir", "data.cache_gb"),
)
"""What a run may change when it is resumed, but by which its times differ from another's."""


YOUNGER = {"data.aspect_ratio": 1.0, "trainer.compile_mode": "default"}
"""Fields that runs were recorded without, and what they do where they are not set: what was done before."""


def without_younger(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config's flat values without the `YOUNGER` ones that do what was done before."""
    return {key: value for key, value in values.items() if key not in YOUNGER or value != YOUNGER[key]}


def run_fingerprint(config: Any, *, train: str, val: str) -> str:
    """Return what is equal for the runs that may stand for each other in a comparison.

    Everything that changes what is learned counts, the seed too, and how many workers of which size learn it and
    how they load; names and places don't.

    Args:
        config: a config, or the plain values that were written down of one.
        train: fingerprint of the training samples and their order.
        val: fingerprint of the validation samples.
    """
    values = {key: value for key, value in flat_values(recorded_config(config)).items() if key != "name"}
    counted = {
        key: value for key, (_, value) in breaking({key: (None, value) for key, value in values.items()}).items()
    }
    counted |= {
        key: value for key, value in values.items() if key.startswith(CONDITIONS) or ".num_workers" in f"{key}."
    }
    counted |= _share_of_node(values)
    text = json.dumps([without_younger(counted), train, val], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _share_of_node(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a fingerprint holds of the CPUs and loaders that a config leaves to the node, and a run records.

    Without GPUs they don't depend on the node. With GPUs they do, and a plan knows no node: they don't count.
    """
    if values.get("cluster.gpus_per_worker"):
        return dict.fromkeys(("cluster.cpus_per_worker", "data.loader_workers"))
    loaders = values.get("data.loader_workers")
    return {
        "cluster.cpus_per_worker": float(values.get("cluster.cpus_per_worker") or 1),
        "data.loader_workers": DEFAULT_LOADERS if loaders is None else loaders,
    }


def machine() -> str:
    """Return this machine in words: its name, processor, and how many there are."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):  # other systems than Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{platform.node()}, {os.cpu_count()} x {cpu}"


def versions() -> dict[str, str]:
    """Return the versions of what computes a run."""
    names = ("torch", "torchvision", "numpy", "ray", "mlflow", "webdataset", "simplejpeg", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
