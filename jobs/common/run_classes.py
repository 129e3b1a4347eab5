"""The class names of a run, where a command is told to use its classes."""

from __future__ import annotations

import json

from datasets.shards.given_classes import are_named


def names_of(given: str, storage: str) -> str:
    """Return what --classes says with a run's name or folder replaced by the run's class names, as a JSON list.

    Args:
        given: as `class_names` takes it, or a run's name or folder, or a checkpoint's.
        storage: folder or s3://BUCKET/PREFIX of the runs.

    Raises:
        ValueError: it is nothing of these; one line.
    """
    if not given or are_named(given):
        return given
    from pipeline.checkpoint.catalog import newest_state, read_manifest, read_state
    from pipeline.checkpoint.resume import locate
    from pipeline.inference.trained_model import find_run

    run, key = locate(find_run(given, storage))
    metadata = read_state(run, key, read_manifest(run, key))[1] if key else newest_state(run)[1]
    if not metadata.classes:
        raise ValueError(f"--classes {given}: no file of names, no prepared data, and no checkpoints of a run in "
                         f"{run.uri}; names themselves are separated by commas, as in cat,dog")  # fmt: skip
    return json.dumps(metadata.classes)
