"""`--extend`: a finished run trained further, under a name of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from infra.storage.open import open_storage
from pipeline.checkpoint.catalog import list_checkpoints
from pipeline.config import TrainConfig
from pipeline.schedule.stages import MAX_EPOCHS


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtendFlags:
    """What is no field of the run."""

    extend: float = 0.0
    """Epochs by which to train a finished run further: under the name NAME-plus-EPOCHS, from the run's last state, with
    so many more in its last stage. 0: off."""

    def __post_init__(self) -> None:
        if not 0 <= self.extend <= MAX_EPOCHS:
            raise ValueError(f"extend is {self.extend:g}: it must be 0 (off) or up to {MAX_EPOCHS:,} epochs")

    def of(self, config: TrainConfig, *, is_elsewhere: bool = False) -> TrainConfig:
        """Return the config of the run that these flags ask for.

        Args:
            config: of the command line without these flags.
            is_elsewhere: the run's storage may be out of reach from here, so don't look for the run that is extended.

        Raises:
            ValueError: it is to be extended, and to resume from another run already; or there is no such run.
        """
        if not self.extend:
            return config
        longer = extended(config, self.extend)
        if not is_elsewhere and not _has_checkpoints(longer) and not _has_checkpoints(config):
            run = open_storage(config.folder)
            raise ValueError(
                f"--extend {self.extend:g}: no run {config.name!r} to extend, {run.uri} holds no valid checkpoint; "
                "name a finished run by --name and --storage, or train it first: the same command without --extend"
            )
        return longer

    @property
    def words(self) -> list[str]:
        """The flags as arguments."""
        return ["--extend", f"{self.extend:g}"] if self.extend else []


def _has_checkpoints(config: TrainConfig) -> bool:
    return bool(list_checkpoints(open_storage(config.folder)))


def extended(config: TrainConfig, epochs: float) -> TrainConfig:
    """Return the config of the run that trains a run's last stage for more epochs.

    Raises:
        ValueError: it is to resume from another run already.
    """
    if config.resume_from:
        raise ValueError(f"extend is {epochs:g}: it resumes from the run {config.name!r}; leave out --resume-from")
    *stages, last = config.stages
    return replace(
        config,
        name=f"{config.name}-plus-{epochs:g}",
        resume_from=f"{config.storage.rstrip('/')}/{config.name}",
        stages=(*stages, replace(last, epochs=last.epochs + epochs)),
    )
