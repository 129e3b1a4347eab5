"""A stand-in for a training process: logs known values, keeps a "checkpoint", and is there to be killed.

Arguments: tracking URI, storage folder, file of the checkpoint, last step. Resumes from the checkpoint if there is one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from infra.storage.open import open_storage
from infra.tracking.config import TrackingConfig
from infra.tracking.tracker import Tracker


def value_of(step: int) -> float:
    return step / 7


def main(uri: str, storage: str, checkpoint: str, stop: str) -> None:
    config = TrackingConfig(uri=uri, system_metrics=False, send_interval_s=0.05)
    tracker = Tracker(config, "killed-run", storage=open_storage(storage))
    cursor = Path(checkpoint)
    start = int(cursor.read_text()) if cursor.exists() else 0
    tracker.log_params({"lr": 0.1, "start": start})
    for step in range(start + 1, int(stop) + 1):
        tracker.log_metrics({"train/loss": value_of(step), "train/lr": 0.5}, step)
        if step % 10 == 0:
            tracker.log_metrics({"val/accuracy": value_of(step)}, step)
        if step % 25 == 0:
            tracker.persist(timeout=0.1)
            open_storage(cursor.parent).write(cursor.name, str(step).encode())
        print(step, flush=True)
        time.sleep(0.005)
    print("closed", tracker.close(timeout=60), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
