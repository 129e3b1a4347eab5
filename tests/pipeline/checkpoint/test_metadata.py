"""What a checkpoint says of its run: the same JSON as ever, and older ones are read."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.catalog import parse_state
from pipeline.checkpoint.metadata import RunMetadata

WRITTEN = {
    "config": {"name": "x", "stages": [{"image_size": 32}]},
    "data": "d",
    "val": "v",
    "versions": {"torch": "2.14"},
    "machine": "m, 2 x cpu",
    "classes": ["cat", "dog"],
    "taken_s": 1.5,
}
"""As every version so far wrote it, in this order."""


def test_it_is_written_byte_for_byte_as_before() -> None:
    metadata = RunMetadata.from_json(WRITTEN)
    assert json.dumps(metadata.to_json(), indent=1) == json.dumps(WRITTEN, indent=1)
    assert (metadata.classes, metadata.taken_s) == (("cat", "dog"), 1.5)


@given(st.sets(st.sampled_from(sorted(WRITTEN))), st.booleans())
def test_what_an_older_version_did_not_write_is_empty_and_a_later_ones_is_left_out(
    lacks: set[str], later: bool
) -> None:
    values = {name: value for name, value in WRITTEN.items() if name not in lacks}
    state = json.dumps({"state": {"cursor": 24}, "facts": values | ({"of_tomorrow": 1} if later else {})})
    _, metadata = parse_state(state.encode())
    written = metadata.to_json()
    assert {name: written[name] for name in values} == values
    assert all(not written.get(name) for name in lacks)
