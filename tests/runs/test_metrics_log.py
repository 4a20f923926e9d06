import json

import numpy as np
import pytest

from mft_jax.errors import UserError
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.store import Store
from tests.runs.disk import FAULTS, fail_with


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "run")


def steps(logger: MetricsLogger) -> list[tuple]:
    return [(r["iteration"], r["stage"], r["step"]) for r in logger.records()]


def test_every_scalar_with_step_and_time(store):
    logger = MetricsLogger(store)
    logger.log(1, "finetune", 7, loss=np.float32(0.5), tokens=3, norm=float("nan"))
    assert not store.root.exists()
    logger.flush()
    (line,) = store.read("metrics.jsonl").decode().splitlines()
    record = json.loads(line)
    assert record.pop("time") > 1.6e9
    assert record == {"iteration": 1, "stage": "finetune", "step": 7, "loss": 0.5, "tokens": 3, "norm": None}


def test_a_resumed_stage_writes_no_step_twice(store):
    logger = MetricsLogger(store)
    for step in range(4):
        logger.log(1, "finetune", step, loss=step)
    logger.log(1, "debate", 3, done=1)
    logger.log(2, "finetune", 3, loss=9)
    logger.flush()
    logger.log(2, "finetune", 4, loss=9)  # lost by a kill
    resumed = MetricsLogger(store)
    resumed.rewind(1, "finetune", 2)
    resumed.log(1, "finetune", 2, loss=2)
    resumed.flush()
    expected = [(1, "finetune", 0), (1, "finetune", 1), (1, "debate", 3), (1, "finetune", 2), (2, "finetune", 3)]
    assert steps(MetricsLogger(store)) == steps(resumed) == expected


@pytest.mark.parametrize("line", [b"hello", b"\xff", b"[]", b"{}", b'{"iteration": 1, "stage": "a", "step": "b"}', b"",
                                  b'{"iteration": 1, "st', b"[" * 9000,
                                  b'{"iteration": "1", "stage": "a", "step": 1}'])  # fmt: skip
def test_a_damaged_line_is_set_aside_and_the_others_are_kept(store, line):
    logger = MetricsLogger(store)
    for step in (1, 2):
        logger.log(1, "debate", step, done=1)
    logger.flush()
    first, second = store.read("metrics.jsonl").splitlines(keepends=True)
    damaged = first + line + b"\n" + second
    store.write("metrics.jsonl", damaged)
    heard = []
    logger = MetricsLogger(store, heard.append)
    assert steps(logger) == [(1, "debate", 1), (1, "debate", 2)]
    assert len(heard) == 1
    assert "metrics.jsonl is damaged (line 2 is not a metrics record): it was moved to" in heard[0]
    assert store.read("damaged/metrics.jsonl") == damaged
    assert store.read("metrics.jsonl") == first + second
    MetricsLogger(store, pytest.fail)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses(store, monkeypatch, fault):
    number, functions, reason, remedy = FAULTS[fault]
    logger = MetricsLogger(store)
    logger.log(1, "finetune", 1, loss=1.0)
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        with pytest.raises(UserError, match=rf"metrics\.jsonl cannot be written \({reason}\): {remedy}"):
            logger.flush()
    logger.flush()
    assert steps(MetricsLogger(store)) == [(1, "finetune", 1)]
