"""KubeRay's schemas of its custom resources: kept beside the tests, smaller than in its repository, and used strictly.

Made by `python -m tests.support.kuberay FOLDER`, with FOLDER the `ray-operator/config/crd/bases` of KubeRay's release.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[1] / "data" / "kuberay" / "schemas.json"
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
VERSION = "v1"
Schema = dict[str, Any]


def schema(kind: str) -> Schema:
    """Return the JSON schema of a kind, in which an unknown field is an error, as `kubectl apply` has it."""
    kept = json.loads(FILE.read_text())
    return {"$ref": f"#/$defs/{kind}", "$defs": strict(kept)}


def strict(part: Any) -> Any:
    """Return a schema whose objects take no fields but their own."""
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    inner = {key: strict(value) for key, value in part.items()}
    is_closed = part.get("type") == "object" and isinstance(part.get("properties"), dict)
    return inner | ({"additionalProperties": False} if is_closed and "additionalProperties" not in part else {})


def smaller(folder: Path) -> dict[str, Schema]:
    """Return the schemas by kind: without descriptions and status, and what is in them several times only once."""
    kinds = {kind: _read(folder / f"ray.io_{plural}.yaml") for kind, plural in KINDS.items()}
    cluster = kinds["RayCluster"]["properties"]["spec"]
    pod = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    replaced = _replaced(kinds, {"RayClusterSpec": cluster})
    return _replaced(replaced | {"RayClusterSpec": cluster}, {"PodTemplateSpec": pod}) | {"PodTemplateSpec": pod}


def _read(path: Path) -> Schema:
    versions = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    found: Schema = _bare(next(item for item in versions if item["name"] == VERSION)["schema"]["openAPIV3Schema"])
    found["properties"].pop("status")
    return found


def _bare(part: Any) -> Any:
    if isinstance(part, list):
        return [_bare(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: _bare(value) for key, value in part.items() if key != "description" or not isinstance(value, str)}


def _replaced(part: Any, named: dict[str, Schema]) -> Any:
    """Return a schema with references in place of the named ones."""
    for name, value in named.items():
        if part == value:
            return {"$ref": f"#/$defs/{name}"}
    if isinstance(part, list):
        return [_replaced(item, named) for item in part]
    return {key: _replaced(value, named) for key, value in part.items()} if isinstance(part, dict) else part


if __name__ == "__main__":
    parts = smaller(Path(sys.argv[1]))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part, separators=(',', ':'))}" for name, part in parts.items())
    FILE.write_text(f"{{\n{lines}\n}}\n")
