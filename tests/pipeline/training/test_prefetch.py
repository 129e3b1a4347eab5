from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.errors import DataError
from datasets.loading.batch import Batch
from pipeline.schedule.decisions import Decision, ExtendStage, NextStage
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from pipeline.training.prefetch import BATCHES_AHEAD, Feed
from pipeline.training.trainer import Trainer
from tests.support.configs import MakeConfig
from tests.support.recorders import Recorder
from tests.support.shards import index_again
from tests.support.trainers import assert_same_weights, make_trainer


class Watched(Feed):
    """Says which loaders are made and how many batches were taken from each."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed.config, feed.manifest, feed.rank, feed.world_size, feed.device)
        self.made: list[StageSpan] = []
        self.taken: dict[int, int] = {}

    def loader(self, span: StageSpan) -> Iterable[Batch]:
        self.made.append(span)
        number = len(self.made) - 1
        self.taken[number] = 0
        return self._counted(super().loader(span), number)

    def _counted(self, batches: Iterable[Batch], number: int) -> Iterator[Batch]:
        for batch in batches:
            self.taken[number] += 1
            yield batch


def test_the_next_stages_first_batches_are_there_when_a_stage_ends(
    make_config: MakeConfig, whole_run: Recorder
) -> None:
    ready: list[int] = []
    trainer = make_trainer(make_config(), hooks := Recorder(lambda progress: look(progress)))
    feed = trainer.feed = Watched(trainer.feed)

    def look(progress: Progress) -> tuple[Decision, ...]:
        if progress.cursor == 264:
            assert feed._ahead is not None
            feed._ahead._thread.join(10)
            ready.append(feed.taken[1])
        return ()

    trainer.run()
    assert ready == [BATCHES_AHEAD]
    assert [(span.index, span.start, span.stop) for span in feed.made] == [(0, 0, 264), (1, 264, 528)]
    assert feed.taken == {0: 11, 1: 11}
    assert_same_weights(whole_run.snapshots[-1], hooks.snapshots[-1])


def test_a_stage_that_ends_otherwise_than_planned_gets_a_loader_of_its_own(make_config: MakeConfig) -> None:
    def advance(progress: Progress) -> tuple[Decision, ...]:
        changed = NextStage(values={"randaugment_magnitude": 1.0})
        return (changed,) if progress.cursor == 240 else ()

    trainer = make_trainer(make_config(), hooks := Recorder(advance))
    feed = trainer.feed = Watched(trainer.feed)
    trainer.run()
    assert [(span.start, span.stage.randaugment_magnitude) for span in feed.made] == [(0, 2), (264, 6), (240, 1.0)]
    after = next(snapshot for snapshot in hooks.snapshots if snapshot.state.cursor == 240)
    resumed = make_trainer(make_config(), other := Recorder())
    resumed.restore(after)
    resumed.run()
    assert_same_weights(hooks.snapshots[-1], other.snapshots[-1])


def test_a_stage_that_is_extended_has_the_next_one_made_ready_again(make_config: MakeConfig) -> None:
    def extend(progress: Progress) -> tuple[Decision, ...]:
        return (ExtendStage(epochs=2.0),) if progress.cursor == 240 else ()

    trainer = make_trainer(make_config(), hooks := Recorder(extend))
    feed = trainer.feed = Watched(trainer.feed)
    trainer.run()
    first, stale, longer, ready = [(span.index, span.start) for span in feed.made]
    assert (first, stale, longer) == ((0, 0), (1, 264), (0, 240))
    assert ready == (1, trainer.state.stage_starts[1])  # made ready for where the longer stage ends
    assert feed.taken[1] <= BATCHES_AHEAD
    after = next(snapshot for snapshot in hooks.snapshots if snapshot.state.cursor == 240)
    resumed = make_trainer(make_config(), other := Recorder())
    resumed.restore(after)
    resumed.run()
    assert_same_weights(hooks.snapshots[-1], other.snapshots[-1])


def test_an_error_of_the_loader_is_raised_where_its_batches_are_used(make_config: MakeConfig) -> None:
    config = make_config()
    trainer = make_trainer(config, Recorder())
    spans = trainer.progress.schedule.spans
    damaged = replace(config, data=replace(config.data, max_pixels=1, max_damaged=0.0))
    feed = Feed(damaged, trainer.feed.manifest, 0, 1, trainer.device)
    feed.make_ready(spans[0], spans[0].stop, spans[1])
    with pytest.raises(ValueError, match="corrupt"):
        list(feed.batches(spans[1], spans[1].start))
    assert torch.is_grad_enabled()


def test_each_stage_has_its_own_crops(make_config: MakeConfig) -> None:
    def first_images(crop_area: tuple[float, float] | None) -> torch.Tensor:
        base = make_config()
        stages = (replace(base.stages[0], crop_area=crop_area), *base.stages[1:])
        trainer = make_trainer(replace(base, stages=stages), Recorder())
        return next(iter(trainer.feed.loader(trainer.progress.schedule.spans[0]))).images

    assert torch.equal(first_images(None), first_images(make_config().data.crop_area))
    assert not torch.equal(first_images(None), first_images((0.1, 0.2)))


def test_a_run_keeps_the_samples_that_it_began_with_when_its_data_are_indexed_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    base = make_config()
    folder = tmp_path / "train"
    shutil.copytree(base.data.train, folder)
    config = replace(base, data=replace(base.data, train=str(folder), val=str(folder)))
    trainer = make_trainer(config, Recorder())
    spans = trainer.progress.schedule.spans

    def seen(trainer: Trainer) -> tuple[list[list[int]], dict[str, float]]:
        return [batch.labels.tolist() for span in spans for batch in trainer.feed.loader(span)], trainer.evaluate(32)

    before = seen(trainer)
    index_again(folder)
    assert seen(trainer) == before
    assert seen(make_trainer(config, Recorder()))[0] == [[3 - label for label in labels] for labels in before[0]]
    shard = trainer.feed.manifest.shards[0].path
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(DataError, match=f"{shard.name}: its time or content is not what manifest.json was made for"):
        trainer.feed.loader(spans[0])
