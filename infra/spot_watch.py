"""Tells Ray that AWS is about to take this spot node away: `python -m infra.spot_watch`, beside `ray start`.

AWS gives two minutes' notice, in the machine's metadata. Ray then drains the node, and a run that has workers on it
writes a checkpoint and goes on elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

METADATA = "http://169.254.169.254"
PAUSE_S = 5.0


def notice(metadata: str = METADATA) -> dict[str, str] | None:
    """Return what AWS has in mind, as `{"action": "terminate", "time": ...}`; None: nothing, or nobody answers."""
    try:
        ask = urllib.request.Request(
            f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urllib.request.urlopen(ask, timeout=2) as answer:
            token = answer.read().decode()
        look = urllib.request.Request(
            f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(look, timeout=2) as answer:
            found: dict[str, str] = json.load(answer)
            return found
    except (urllib.error.URLError, OSError, ValueError):  # 404: nothing is planned
        return None


def seconds_left(found: dict[str, str], now: datetime) -> int:
    """Return how long the node still has, in seconds."""
    return max(0, round((datetime.fromisoformat(found["time"].replace("Z", "+00:00")) - now).total_seconds()))


def drain(address: str, left_s: int) -> None:
    """Tell Ray that this node goes."""
    import ray

    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    node_id = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=AWS takes this spot node away"]
    where = [f"--address={address}", f"--node-id={node_id}", f"--deadline-remaining-seconds={left_s}"]
    subprocess.run([str(Path(sys.executable).with_name("ray")), "drain-node", *where, *reason], check=True)


def main() -> None:
    """Look every few seconds; end after the notice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="of the cluster, as HOST:6379")
    parser.add_argument("--metadata", default=METADATA, help="where AWS's metadata service answers")
    options = parser.parse_args()
    while (found := notice(options.metadata)) is None:
        time.sleep(PAUSE_S)
    left_s = seconds_left(found, datetime.now(UTC))
    print(f"AWS will {found['action']} this node in {left_s} s", flush=True)
    drain(options.address, left_s)


if __name__ == "__main__":
    main()
