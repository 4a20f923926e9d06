import dataclasses
import itertools
import json

import pytest

from mft_jax.metrics.answers import AnswerSummary, Transition, pass_at_k, summarize_answers, vote_quality

EQUAL = lambda a, b: a.lower() == b.lower()


def debate(rounds, votes, gold="x"):
    """The transcript of a debate, from the answers of every agent in each round; "?" is a text that was cut."""
    agents = [
        {
            "answers": [None if answer == "?" else answer for answer in own],
            "turns": [{"end": "limit" if answer == "?" else "stop"} for answer in own],
        }
        for own in zip(*rounds, strict=True)
    ]
    correct = None if gold is None else votes[-1] is not None and EQUAL(votes[-1], gold)
    return {"gold": gold, "agents": agents, "votes": votes, "vote": votes[-1], "correct": correct}


@pytest.mark.parametrize(("right", "n"), [(0, 5), (1, 5), (3, 5), (5, 5)])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(right, n):
    samples = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        chosen = list(itertools.combinations(samples, k))
        assert pass_at_k(right, n, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


@pytest.mark.parametrize(("right", "n", "k"), [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(right, n, k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        pass_at_k(right, n, k)


DEBATES = [
    debate([["X", "y", "y"], ["x", "x", "y"]], ["y", "x"]),  # corrected
    debate([["x", "x", "y"], ["y", "x", "y"]], ["x", "y"]),  # the majority is lost
    debate([["x", "x", "x"]], ["x"]),  # ended at agreement
    debate([["y", "?", None], ["y", "y", "y"]], ["y", "y"]),
]
SPEAKERS = (("gen_0", "gen_1", "gen_2"), ("rev_0", "rev_1", None))


def test_the_answers_of_debates():
    found = summarize_answers(DEBATES, EQUAL, SPEAKERS)
    assert found.n == 4
    assert found.pass_at_k == pytest.approx(((2 + 1 + 3) / 3 / 4, (1 + 2 / 3 + 1) / 4, 3 / 4))
    assert found.best_of_agents == 0.75
    assert found.vote_accuracy == (0.5, 0.5)
    assert found.agent_accuracy == ((0.75, 0.5, 0.25), (0.5, 0.75, 0.25))
    counts = {"wrong_to_right": 0, "right_to_wrong": 0, "kept_right": 0, "kept_wrong": 0}
    assert found.transitions == (
        Transition(
            round=2, agent=0, speaker="rev_0", **counts | {"kept_right": 1, "right_to_wrong": 1, "kept_wrong": 1}
        ),
        Transition(
            round=2, agent=1, speaker="rev_1", **counts | {"wrong_to_right": 1, "kept_right": 1, "kept_wrong": 1}
        ),
        Transition(round=2, agent=2, speaker=None, **counts | {"kept_wrong": 3}),
    )


def test_questions_without_a_known_answer_do_not_count():
    unknown = debate([["x", "x", "x"], ["x", "x", "x"]], ["x", "x"], gold=None)
    assert summarize_answers([unknown, *DEBATES], EQUAL, SPEAKERS) == summarize_answers(DEBATES, EQUAL, SPEAKERS)
    assert summarize_answers([unknown], EQUAL) is None


def test_a_summary_is_rebuilt_from_json():

    found = summarize_answers(DEBATES, EQUAL, SPEAKERS)
    assert AnswerSummary.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_the_votes_that_serve_as_labels():
    undecided = debate([["?", None], ["?", "?"]], [None, None])
    found = vote_quality([*DEBATES, undecided], cut=7)
    assert (found.questions, found.coverage, found.precision, found.unparsed, found.cut) == (5, 0.8, 0.5, 2, 7)
    assert vote_quality([debate([["x", "x"]], ["x"], gold=None)]).precision is None
    assert vote_quality([undecided]).precision is None
    with pytest.raises(ValueError, match="got none"):
        vote_quality([])
