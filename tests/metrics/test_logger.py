import json

import numpy as np
import pytest

from mft_jax.errors import UserError
from mft_jax.metrics.logger import MetricsLogger


def steps(logger: MetricsLogger) -> list[tuple]:
    return [(r["iteration"], r["stage"], r["step"]) for r in logger.records()]


def test_every_scalar_with_step_and_time(tmp_path):
    logger = MetricsLogger(tmp_path / "metrics.jsonl")
    logger.log(1, "finetune", 7, loss=np.float32(0.5), tokens=3, norm=float("nan"))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time") > 1.6e9
    assert record == {"iteration": 1, "stage": "finetune", "step": 7, "loss": 0.5, "tokens": 3, "norm": None}


def test_a_resumed_stage_writes_no_step_twice(tmp_path):
    logger = MetricsLogger(tmp_path / "metrics.jsonl")
    for step in range(4):
        logger.log(1, "finetune", step, loss=step)
    logger.log(1, "debate", 3, done=1)
    logger.log(2, "finetune", 3, loss=9)
    resumed = MetricsLogger(tmp_path / "metrics.jsonl")
    resumed.rewind(1, "finetune", 2)
    resumed.log(1, "finetune", 2, loss=2)
    expected = [(1, "finetune", 0), (1, "finetune", 1), (1, "debate", 3), (2, "finetune", 3), (1, "finetune", 2)]
    assert steps(MetricsLogger(tmp_path / "metrics.jsonl")) == expected


def test_a_torn_last_line_is_dropped_and_the_next_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLogger(path).log(1, "debate", 0, done=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-1])
    logger = MetricsLogger(path)
    assert path.read_bytes() == whole
    logger.log(1, "debate", 1, done=2)
    assert steps(logger) == [(1, "debate", 0), (1, "debate", 1)]


def test_a_spoilt_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "stage": "debate", "step": 0}\nhello\n')
    with pytest.raises(UserError, match="line 2 is not a metrics record"):
        MetricsLogger(tmp_path / "metrics.jsonl")
