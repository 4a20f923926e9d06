"""Opens the trackers that the configuration names. Their packages are imported only when they are asked for."""

import importlib.util
from collections.abc import Callable

from mft_jax.config import ExperimentConfig, LoggingConfig, to_dict
from mft_jax.errors import UserError
from mft_jax.parallel.hosts import is_first
from mft_jax.runs.store import Store
from mft_jax.tracking.trackers import Tracker, Trackers


def check_packages(config: LoggingConfig) -> None:
    """Raises UserError, which names the extra to install, if a tracker is asked for whose package is missing."""
    wanted = {"tensorboard": ("tensorboardX", config.tensorboard), "wandb": ("wandb", config.wandb != "off")}
    for extra, (package, is_wanted) in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise UserError(
                f"logging.{extra} needs the package {package}, which is not installed: "
                f"pip install 'mft_jax[{extra}]', or leave logging.{extra} out."
            )


def check_place(config: LoggingConfig, store: Store) -> None:
    """Raises UserError if a tracker is asked for that cannot write where the run is."""
    for name, is_wanted in {"tensorboard": config.tensorboard, "wandb": config.wandb != "off"}.items():
        if is_wanted:
            store.check_local(f"logging.{name}")


def open_trackers(config: ExperimentConfig, store: Store, say: Callable[[str], None]) -> Trackers:
    """The trackers of a run. One that cannot be opened is left out, and `say` reports it.

    Of several hosts only the first one has trackers.
    """
    opened: list[Tracker] = []
    if is_first():
        for name, open_one in (("TensorBoard", _open_tensorboard), ("Weights & Biases", _open_wandb)):
            try:
                tracker = open_one(config, store)
            except Exception as error:  # no network, no login, a full disk, a fault of the package
                say(f"{name} gets no metrics of this run ({type(error).__name__}: {str(error)[:200]}).")
                continue
            opened += [] if tracker is None else [tracker]
    return Trackers(opened, say)


def _open_tensorboard(config: ExperimentConfig, store: Store) -> Tracker | None:
    if not config.logging.tensorboard:
        return None
    from mft_jax.tracking.tensorboard import TensorBoard

    return TensorBoard(store.root)


def _open_wandb(config: ExperimentConfig, store: Store) -> Tracker | None:
    if config.logging.wandb == "off":
        return None
    from mft_jax.tracking.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases(store, config.logging.wandb, config.logging.wandb_project, to_dict(config))
