import json

import pytest

from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost, total


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
