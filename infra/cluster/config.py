"""Where a run trains and what each worker gets: a config that is read without importing Ray."""

from __future__ import annotations

from dataclasses import dataclass

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives a node by its GPUs."""
REQUEST_EXPIRES_S = 900.0
"""Nodes that were asked for ahead and are not used after this long, in seconds, may go."""


class ClusterError(ValueError):
    """The cluster can't be reached, or can't give what the run asks for."""


class RayVersionError(ClusterError):
    """This process has another release of Ray than the supported one, or than the cluster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where a run trains, and what each of its workers gets."""

    address: str = ""
    """Address of a Ray cluster (`auto`, `host:port`, `ray://host:port`). Empty: RAY_ADDRESS, else a local one."""
    num_workers: int | tuple[int, int] = 2
    """Training workers (DDP ranks) for stages that set no number of their own. A range, such as `1 4`: as many as the
    cluster has room for, among those that divide `data.num_lanes`; fewer after a node is lost, more when one joins."""
    grow_check_s: float = 30.0
    """With a range: seconds between two checks for room for more workers. To grow, a worker group saves a checkpoint
    and a larger one starts."""
    ask_ahead_s: float = 300.0
    """On a cluster with an autoscaler: how long before a stage with more workers begins its nodes are requested, in
    seconds; 0: only when it begins."""
    cpus_per_worker: float = 0
    """CPUs that each worker reserves, for its training thread and its loader processes. 0: with GPUs an equal share of
    the node's, of which one is left for the node itself; without GPUs 1."""
    gpus_per_worker: float = 0
    """GPUs that each worker reserves; 0 trains on CPU."""
    accelerator_type: str = ""
    """Type of GPU that workers are placed on, as Ray names it: `A100`, `H100`, `L4`. Empty: any."""
    label_selector: tuple[str, ...] = ()
    """Labels of the nodes that workers are placed on, each KEY=VALUE with a value as Ray's label selectors have it, as
    `ray.io/market-type=spot`, `ray.io/availability-zone=!us-east-1a` or `rack=in(a,b)`. Empty: any nodes."""
    standby: bool = True
    """Keep a spare process with everything imported for each worker, once its group has trained for a minute and a CPU
    of its node is idle: a lost worker is then replaced in seconds. Costs about half a gigabyte of host memory per
    worker."""
    max_failures: int = 3
    """Number of consecutive failures, without progress in between, that a run recovers from. -1: any number."""
    step_timeout_s: float = 1200.0
    """Longest time without progress of a rank, in seconds: no step, no evaluation batch, no check whether a pause has
    ended. The rank then saves its stack traces in the run's `stacks/` and exits, and a new worker group resumes. Keep
    it above the 15 minutes for which S3 may be unavailable, and above the time that downloading a compressed shard or
    compiling a stage takes. 0: no limit."""

    def __post_init__(self) -> None:
        low, high = (self.num_workers,) * 2 if isinstance(self.num_workers, int) else self.num_workers
        if not 1 <= low <= high:
            raise ValueError(
                f"cluster.num_workers is {self.num_workers}: it must be at least 1, or a range (smallest, largest)"
            )
        if self.grow_check_s <= 0:
            raise ValueError(f"cluster.grow_check_s is {self.grow_check_s}: it must be above 0")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cluster.{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("ask_ahead_s", "step_timeout_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cluster.{name} is {getattr(self, name)}: it must be 0 (off) or more")
        for label in self.label_selector:
            if not all(part.strip() for part in label.partition("=")):
                raise ValueError(f"cluster.label_selector has {label!r}: each is KEY=VALUE, as ray.io/market-type=spot")
        if self.max_failures < -1:
            raise ValueError(f"cluster.max_failures is {self.max_failures}: use -1 for any number, or 0 and more")

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the nodes that workers are placed on, as Ray takes them."""
        pairs = (one.replace(" ", "").partition("=") for one in self.label_selector)  # Ray takes no spaces
        labels = {key: value for key, _, value in pairs}
        return labels | ({ACCELERATOR_LABEL: self.accelerator_type} if self.accelerator_type else {})

    @property
    def reserved_cpus(self) -> float:
        """CPUs that each worker reserves; 1 as long as no node has said how many it has."""
        return self.cpus_per_worker or 1.0

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What each worker reserves, as Ray names it."""
        return {"CPU": self.reserved_cpus} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})

    @property
    def threads_per_worker(self) -> int:
        """Threads that a worker computes with: a number that resuming "bit for bit" depends on."""
        return max(1, int(self.reserved_cpus))
