"""The trackers with their real packages: what they hold after kills, and that their faults do not end a run."""

import dataclasses
import os
import sys

import pytest

from mft_jax.config import ExperimentConfig, LoggingConfig, from_dict, from_yaml, to_yaml
from mft_jax.errors import UserError
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.store import Store
from mft_jax.tracking import Trackers, check_packages, open_trackers
from tests.report.made import TUNED, result
from tests.tracking.events import scalars

BOARD = ExperimentConfig(logging=LoggingConfig(tensorboard=True))


def start(config, store, iteration, first, last, *, saved):
    """One start of a run: the steps `first` to `last` of an iteration, with a save after the step `saved`; then a kill."""
    said = []
    trackers = open_trackers(config, store, said.append)
    logger = MetricsLogger(store, said.append, trackers)
    logger.rewind(iteration, "finetune", first)
    for step in range(first, last + 1):
        logger.log(iteration, "finetune", step, loss=10 * iteration + step, broken=float("nan"))
        if step == saved:
            logger.flush()
    assert said == []
    return trackers


def test_tensorboard_has_every_step_once(tmp_path):
    store = Store(tmp_path)
    start(ExperimentConfig(), store, 1, 1, 2, saved=2).close()  # before TensorBoard was switched on
    start(BOARD, store, 2, 1, 3, saved=2)
    start(BOARD, store, 2, 3, 3, saved=3)
    trackers = start(BOARD, store, 2, 4, 5, saved=5)
    trackers.results([result(), result(**TUNED)])
    trackers.results([result(), result(**TUNED)])
    trackers.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["iteration_1", "loss"] == [(1, 11.0), (2, 12.0)]
    assert found["iteration_2", "loss"] == [(1, 21.0), (2, 22.0), (3, 23.0), (4, 24.0), (5, 25.0)]
    assert not any(tag == "broken" for _, tag in found)
    tuned = result(**TUNED)
    ((step, accuracy),) = found[f"results/{tuned.method} on {tuned.task}", "results/accuracy"]
    assert (step, accuracy) == (tuned.iteration, pytest.approx(tuned.accuracy))


def test_wandb_offline_sends_every_step_once(tmp_path, monkeypatch):
    import wandb

    sent, log = [], wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, values, step: (sent.append((run.id, step, values)), log(run, values, step=step))
    )
    offline = dataclasses.replace(BOARD, logging=LoggingConfig(wandb="offline", wandb_project="p"))
    store = Store(tmp_path)
    start(offline, store, 1, 1, 3, saved=2).close()
    start(offline, store, 1, 3, 3, saved=3).close()
    trackers = start(offline, store, 2, 1, 2, saved=2)
    trackers.results([result(), result(**TUNED)])
    trackers.close()
    assert len({run for run, _, _ in sent}) == 1
    expected = [(1, 11.0, 1), (2, 12.0, 1), (3, 13.0, 1), (4, 21.0, 2), (5, 22.0, 2)]
    assert [(step, values["loss"], values["iteration"]) for _, step, values in sent] == expected
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 3
    assert all(os.path.getsize(path) > 0 for path in files)


class Broken:
    name = "Broken"

    def __getattr__(self, name):
        raise ConnectionError("no network")


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path):
    said = []
    trackers = Trackers([Broken()], said.append)
    trackers.begin(1, [])
    trackers.log({"step": 1})
    trackers.flush()
    assert said == [
        "Broken gets no more metrics of this run (ConnectionError: no network); metrics.jsonl has all of them."
    ]
    (tmp_path / "tensorboard").write_text("in the way")
    logger = MetricsLogger(Store(tmp_path), follower=open_trackers(BOARD, Store(tmp_path), said.append))
    logger.rewind(1, "finetune", 1)
    logger.log(1, "finetune", 1, loss=1.0)
    logger.flush()
    assert len(logger.records()) == 1
    assert len(said) == 2
    assert said[1].startswith("TensorBoard gets no more metrics of this run")


@pytest.mark.parametrize(
    ("logging", "package"), [({"tensorboard": True}, "tensorboardX"), ({"wandb": "offline"}, "wandb")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, logging, package):
    config = LoggingConfig(**logging)
    check_packages(config)
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [])  # as if nothing were installed
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UserError) as caught:
        check_packages(config)
    (extra,) = logging
    assert str(caught.value) == (
        f"logging.{extra} needs the package {package}, which is not installed: pip install 'mft_jax[{extra}]', or leave "
        f"logging.{extra} out."
    )
    check_packages(LoggingConfig())


def test_off_needs_no_quotes_in_yaml():
    config = from_yaml(b"logging:\n  wandb: off\n  tensorboard: on\n", "c.yaml")
    assert config.logging == LoggingConfig(tensorboard=True, wandb="off")
    assert from_yaml(to_yaml(config).encode(), "again") == config
    with pytest.raises(UserError, match=r"logging.wandb is True, expected one of 'off', 'offline', 'online'"):
        from_dict({"logging": {"wandb": True}})
