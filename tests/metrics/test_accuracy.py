import math

import pytest

from mft_jax.metrics.accuracy import accuracy


def test_accuracy_and_its_standard_error():
    score = accuracy([True, True, True, False])
    assert (score.n, score.value) == (4, 0.75)
    assert score.stderr == math.sqrt(0.75 * 0.25 / 4)
    assert accuracy([True, True]).stderr == 0.0
    with pytest.raises(ValueError, match="got none"):
        accuracy([])
