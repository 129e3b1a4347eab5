"""Drains this node when AWS reclaims its spot instance: `python -m infra.spot_watch`, next to `ray start`.

AWS gives two minutes' notice, in the machine's metadata. Ray then drains the node, and a run that has workers on it
writes a checkpoint and continues elsewhere. `--now SECONDS` is for others that give notice, such as Kubernetes: it
drains the node at once, and returns when no run has workers here any more.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from http.client import HTTPException

from infra.cluster.config import ClusterError, RayVersionError

METADATA = "http://169.254.169.254"
PAUSE_S = 5.0
CONNECT_TIMEOUT_S = 5.0
LOOK_EVERY_S = 1.0
TRAINING = "ray::RayTrainWorker"
"""What the title of a rank's process begins with."""


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
            said = json.load(answer)
        found = {name: str(said[name]) for name in ("action", "time")}
        seconds_left(found, datetime.now(UTC))  # a time that can't be read is no notice either
        return found
    except (OSError, HTTPException, ValueError, KeyError, TypeError):  # 404: nothing is planned
        return None


def seconds_left(found: dict[str, str], now: datetime) -> int:
    """Return how long the node still has, in seconds."""
    return max(0, round((datetime.fromisoformat(found["time"].replace("Z", "+00:00")) - now).total_seconds()))


def drain(address: str, left_s: int) -> None:
    """Tell Ray that the nodes of this machine will be taken away in `left_s` seconds.

    Raises:
        ClusterError: the cluster knows no living node here.
        OSError, ray.exceptions.RayError: it doesn't answer, or refuses the token.
    """
    import ray

    from infra.cluster.connect import check_port
    from infra.cluster.ray_private import drain_node, nodes_at

    check_port(address, CONNECT_TIMEOUT_S)
    host = ray.util.get_node_ip_address()
    nodes = nodes_at(address, host)
    if not nodes:
        raise ClusterError(f"no living node of the cluster at {address} has the address {host}")
    for node in nodes:
        drain_node(address, node, left_s=left_s, why="this node is being taken away")


def drain_in_time(address: str, found: dict[str, str]) -> None:
    """Tell Ray of a notice; again with pauses until it is told or the machine is gone."""
    while not is_told(address, seconds_left(found, datetime.now(UTC))):
        time.sleep(PAUSE_S)


def leave(address: str, left_s: float) -> None:
    """Drain this node, and return when no rank is on it any more, or after `left_s` seconds."""
    end, told = time.monotonic() + left_s, False
    while is_training() and (left_s := end - time.monotonic()) > 0:
        told = told or is_told(address, round(left_s))
        time.sleep(LOOK_EVERY_S)


def is_told(address: str, left_s: int) -> bool:
    """Tell Ray that this node will be taken away in `left_s` seconds; if that fails, print why and return False."""
    try:
        drain(address, left_s)
    except RayVersionError:
        raise
    except Exception as error:
        print(f"Ray could not be told yet: {str(error).strip().partition(chr(10))[0]}; {left_s} s left", flush=True)
        return False
    print(f"Ray is draining this node, with {left_s} s left", flush=True)
    return True


def is_training() -> bool:
    """Say whether a rank of a run is among this machine's, or this container's, processes."""
    import psutil

    titles = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return any(title and title[0].startswith(TRAINING) for title in titles)


def main(argv: Sequence[str] | None = None) -> None:
    """Look every few seconds; end after the notice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="of the cluster, as HOST:6379")
    parser.add_argument("--metadata", default=METADATA, help="URL of AWS's metadata service")
    parser.add_argument(
        "--now", type=float, metavar="SECONDS", help="the node is taken away after so long: drain it now"
    )
    options = parser.parse_args(argv)
    if options.now is not None:
        leave(options.address, options.now)
        return
    while (found := notice(options.metadata)) is None:
        time.sleep(PAUSE_S)
    print(f"AWS will {found['action']} this node in {seconds_left(found, datetime.now(UTC))} s", flush=True)
    drain_in_time(options.address, found)


if __name__ == "__main__":
    main()
