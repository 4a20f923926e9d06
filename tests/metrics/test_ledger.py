import json

import pytest

from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost, Ledger, total


def test_costs_add_field_by_field():
    first = Cost(prompt_tokens=1, new_tokens=2, train_tokens=3, flops=2**70, device_seconds=0.5, wall_seconds=1.5)
    second = Cost(prompt_tokens=10, new_tokens=20, train_tokens=30, flops=1, device_seconds=0.25, wall_seconds=1.0)
    expected = Cost(
        prompt_tokens=11, new_tokens=22, train_tokens=33, flops=2**70 + 1, device_seconds=0.75, wall_seconds=2.5
    )
    assert first + second == expected == total([first, second])
    assert total([]) == Cost()


def test_costs_are_rebuilt_from_json():
    cost = Cost(prompt_tokens=3, flops=10**19 + 1, wall_seconds=0.1)
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    with pytest.raises(UserError, match="here: 'watts' is not a field"):
        Cost.from_dict({"watts": 1}, source="here")


def test_the_memory_of_a_sum_is_the_largest():
    costs = [Cost(peak_memory_bytes=size, flops=1) for size in (3, 7, 5)]
    assert total(costs) == Cost(peak_memory_bytes=7, flops=3)


def test_a_ledger_counts_all_training_and_one_evaluation():
    debate, finetuning, evaluation = Cost(flops=10), Cost(flops=1, train_tokens=5), Cost(flops=100, new_tokens=2)
    ledger = Ledger(debate=debate, finetuning=finetuning, evaluation=evaluation, training=Cost(flops=33))
    assert ledger.cumulative == Cost(flops=133, new_tokens=2)
    raw = json.loads(json.dumps(ledger.to_dict()))
    assert raw["cumulative"]["flops"] == 133
    assert Ledger.from_dict(raw) == ledger
    with pytest.raises(KeyError, match="training"):
        Ledger.from_dict({name: raw[name] for name in ("debate", "finetuning", "evaluation")})
