import dataclasses

import pytest

from mft_jax.report.page.judge import FLAGS, count_transitions, count_votes, judge
from mft_jax.tasks.answers import equivalent
from tests.report.page.made_run import agent, debate


def flags(answers, votes, **changes):
    return judge(debate("q", answers, votes, **changes), equivalent).flags


def test_marks_agreement_and_votes():
    found = judge(debate("q", [["4", "10/2"], [None, "5.0"], ["5", None]], ["4", "5"]), equivalent)
    assert found.marks == ("wr", "nr", "rn")
    assert found.agrees == ((False, True), (False, True), (True, False))
    assert found.votes == "wr"
    assert found.flags == {"wrong_to_right", "right_to_wrong", "split", "vote_right", "vote_changed", "unparsed"}


@pytest.mark.parametrize(
    ("answers", "votes", "expected"),
    [
        ([["5", "5"], ["5", "5"]], ["5", "5"], {"vote_right"}),
        ([["5", "4"], ["5", "4"]], ["5", "4"], {"vote_wrong", "vote_changed", "right_to_wrong"}),
        ([["4", "4"], ["5", "5"]], ["4", "4"], {"vote_wrong", "split"}),
        ([["5"]], ["5"], {"vote_right"}),  # a single agent cannot be split
        ([[None], [None]], [None], {"split", "unparsed"}),
    ],
)
def test_flags(answers, votes, expected):
    assert flags(answers, votes) == expected
    assert expected <= set(FLAGS)


def test_without_a_reference_answer_nothing_is_right_or_wrong():
    found = judge(debate("q", [["4", "5"], ["5", "5"]], ["4", "5"], gold=None), equivalent)
    assert found.marks == ("uu", "uu")
    assert found.flags == {"vote_changed"}
    assert count_transitions([found]) == [{}]
    assert count_votes([found]) == {"known": 0, "voted": 0, "right": 0}


def test_a_text_that_was_cut():
    cut = agent(("q", "It is 5 and then", "5", "limit"))
    whole = debate("q", [["5"]], ["5"])
    assert judge(dataclasses.replace(whole, agents=(cut,)), equivalent).flags == {"vote_right", "cut"}


def test_transitions_are_counted_by_round():
    """The second debate ended after its first round."""
    debates = [
        debate("a", [["4", "5", "5"], ["5", "5", "6"]], ["4", "5", "5"]),
        debate("b", [["5"], ["5"]], ["5"]),
    ]
    assert count_transitions([judge(own, equivalent) for own in debates]) == [{"wr": 1, "rr": 1}, {"rr": 1, "rw": 1}]


def test_precision_and_coverage_of_the_votes():
    debates = [
        debate("a", [["5"], ["5"]], ["5"]),
        debate("b", [["4"], ["4"]], ["4"]),
        dataclasses.replace(debate("c", [[None], [None]], [None]), correct=False),  # as a run records it
        debate("d", [["4"], ["4"]], ["4"], gold=None),
    ]
    assert count_votes([judge(own, equivalent) for own in debates]) == {"known": 3, "voted": 2, "right": 1}
