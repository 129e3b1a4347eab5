"""What a checkpoint records about its run besides state and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMetadata:
    """What made a checkpoint. Under `facts` in `state.json`; what an older version didn't write is empty."""

    config: dict[str, Any] = field(default_factory=dict)
    """The run's config as JSON values, perhaps of another version of `TrainConfig`."""
    data: str = ""
    """Fingerprint of the training samples and their order."""
    val: str = ""
    """Fingerprint of the validation samples."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that compute a run."""
    machine: str = ""
    """Rank 0's, in words."""
    classes: tuple[str, ...] = ()
    """Names, by label."""
    taken_s: float | None = None
    """When the state was taken (Unix time)."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = asdict(self) | {"classes": list(self.classes)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunMetadata:
        """Return what `to_json` wrote; what only a later version knows is left out."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"classes": tuple(values.get("classes", ()))})
