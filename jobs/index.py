"""`python -m jobs.index URL`: index existing WebDataset shards, local or in S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from datasets.errors import DataError
from datasets.files.urls import absolute, check_writable, folder_of, name_of, place_to_write, write_file
from datasets.shards.indexing import IndexRules, index_shards
from datasets.shards.manifest import wids_json
from datasets.shards.resolve import expand_files
from infra.storage.failures import reworded
from jobs.common.cli import run_main
from jobs.common.display import shown_progress, summary
from jobs.common.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Count and locate every sample of some shards in one parallel pass over the tars' headers.

    A tar must be complete: what is damaged, cut within a member or joined by `cat` is refused with the byte, and so are
    two samples of one key. What is no sample (directories, links, files of other extensions) is counted by reason.

    Writes manifest.json and index-DIGEST.npy next to the shards, or into --out: that folder is then what data.train or
    data.val names. A shard that changes later is noticed by its size, in S3 by its ETag too.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Folder, s3://BUCKET/PREFIX, brace list, or several of these joined by `::`."""
    out: str = ""
    """Folder or s3://BUCKET/PREFIX for the index, if the shards' own folder can't be written to or the shards are in
    several folders."""
    wids: str = ""
    """File for the list of shards in wids' JSON format."""
    rules: tyro.conf.OmitArgPrefixes[IndexRules] = field(default_factory=IndexRules)


def main(argv: Sequence[str]) -> int:
    """Index, and say what was found."""
    run(parse(IndexConfig, argv, prog="python -m jobs.index"))
    return 0


def run(config: IndexConfig) -> None:
    """Index the shards with a progress bar."""
    out = absolute(place_to_write(config.out, "--out")) if config.out else _folder(config.url)
    wids = absolute(place_to_write(config.wids, "--wids")) if config.wids else ""
    try:
        check_writable(out)
    except DataError as error:
        raise reworded(error, f"{error}; name another folder with --out") from None
    lines: list[str] = []
    with shown_progress(f"{config.url} -> {out}", unit="shards") as progress:
        manifest = index_shards(config.url, out, config.rules, progress=progress, tell=lines.append)
    if wids:
        write_file(wids, wids_json(manifest, name=name_of(out)).encode())
    print(f"{out}: {summary(manifest)}")
    for line in lines:
        print(line)


def _folder(url: str) -> str:
    """Return the folder that the shards lie in."""
    folders = sorted({folder_of(file.url) for file in expand_files(url)})
    if len(folders) > 1:
        raise DataError(f"{url}: the shards are in {len(folders)} folders; index them one by one, or name an --out")
    return folders[0]


if __name__ == "__main__":
    run_main(main)
