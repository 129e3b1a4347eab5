"""What rank 0 does when a checkpoint is complete, waits or fails. Called in the thread that writes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from infra.storage.base import Storage
from infra.storage.lease import Lease, LeaseError
from infra.tracking.lineage import CheckpointModel
from infra.tracking.tracker import Tracker
from pipeline.checkpoint.async_writer import SaverEvents, SaverStoppedError
from pipeline.checkpoint.catalog import CheckpointRow, describe_checkpoints
from pipeline.run.controller_client import ControllerClient
from pipeline.run.summary import checkpoint_table

log = logging.getLogger(__name__)


class CheckpointListener(SaverEvents):
    """Lets a checkpoint become whole only while the run is this one's; tells the controller and MLflow of it.

    `models` makes of the checkpoints in storage those that MLflow is told of.
    """

    def __init__(
        self,
        controller: ControllerClient,
        lease: Lease,
        tracker: Tracker,
        storage: Storage,
        models: Callable[[Sequence[CheckpointRow]], Sequence[CheckpointModel]],
    ) -> None:
        self.controller, self.lease, self.tracker, self.storage = controller, lease, tracker, storage
        self._models = models

    def before_manifest(self) -> None:
        """Make the rows up to a checkpoint outlive this process: a resumed run won't make them again.

        A run that has ended, as by losing its lease to another submission, makes no checkpoint whole any more.
        """
        if ended := self.controller.error():
            raise SaverStoppedError(ended)
        try:
            self.lease.check()  # the controller may not have heard of it yet
        except LeaseError as error:
            raise SaverStoppedError(str(error)) from error
        self.tracker.persist()

    def saved(self, uri: str, cursor: int) -> None:
        """Tell the controller of the newest checkpoint, and tag the MLflow run with it."""
        log.info("checkpoint %s is complete", uri, extra={"cursor": cursor})
        self.controller.saved(uri, cursor)
        self.tracker.set_tags({"checkpoint": uri})

    def pruned(self) -> None:
        """List in MLflow the checkpoints that are kept."""
        rows = describe_checkpoints(self.storage)
        self.tracker.log_table("checkpoints.json", checkpoint_table(rows, self.storage.uri))
        self.tracker.log_checkpoints(self._models(rows))

    def waits(self, line: str) -> None:
        """Tell the user, once for each fault."""
        log.warning(line)
        self.controller.not_saved(line)

    def gave_up(self, line: str) -> None:
        """End the run with this line."""
        self.controller.failed(line)
