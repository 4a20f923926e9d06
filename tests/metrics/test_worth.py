"""How much a verdict on a question is worth: shares that are counted by hand."""

import pytest

from mft_jax.metrics.worth import Worth, worth


def debate(vote, *answers):
    return {"vote": vote, "agents": [{"answers": own} for own in answers]}


def same(a, b):
    return float(a) == float(b)


@pytest.mark.parametrize(
    ("debates", "expected"),
    [
        ([debate("5", ["5", "5"], ["5.0", "5"])], Worth(split=0, flips=0, changes=0)),
        ([debate("5", ["4", "5", "5"], ["5", "6", None])], Worth(split=1 / 2, flips=3 / 4, changes=0)),
        ([debate("5", ["5"]), debate("6", ["6"]), debate("6.0", ["6"])], Worth(split=0, flips=0, changes=1 / 2)),
        ([debate(None, [None], [None])], Worth(split=1, flips=0, changes=0)),
        ([debate("1", ["1"]), debate(None, [None, None])], Worth(split=1, flips=0, changes=1)),
    ],
)
def test_shares(debates, expected):
    found = worth(debates, same)
    assert found == expected
    assert found.total == expected.split + expected.flips + expected.changes
