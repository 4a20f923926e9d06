"""Markdown tables over several runs."""

import pytest

from mft_jax.errors import UserError
from mft_jax.metrics.answers import AnswerSummary, Transition
from mft_jax.metrics.ledger import Cost, Ledger
from mft_jax.metrics.vote_curve import VotePoint
from mft_jax.report.outcome_table import markdown_table
from mft_jax.runs.outcomes import Outcome
from tests.report.made import result


def outcome(method, right, *, seed=0, iteration=0, label="", flops=40, **changes):
    """The outcome on four questions, of which the first `right` are answered correctly."""
    ledger = Ledger(debate=Cost(), finetuning=Cost(), evaluation=Cost(flops=flops), training=Cost(flops=60 * iteration))
    own = result(
        method=method, iteration=iteration, n=4, accuracy=right / 4, stderr=0.2, ledger=ledger, task="sums", **changes
    )
    return Outcome(label=label, seed=seed, result=own, correct={str(n): n < right for n in range(4)})


def cells(text):
    """{heading: cell} of every row."""
    headings, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_means_over_seeds_with_their_costs():
    own = [outcome("a", 1), outcome("b|c", 2, iteration=1), outcome("a", 2, seed=1, flops=80)]
    assert markdown_table(own).splitlines() == [
        "| method | iteration | seeds | accuracy, % | FLOPs of an answer | FLOPs with training |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 0 | 2 | 37.5 ± 14.1 (25.0, 50.0) | 15 | 60 |",
        r"| b\|c | 1 | 1 | 50.0 ± 20.0 | 10 | 100 |",
    ]


def test_comparisons_pool_the_questions_of_all_seeds():
    own = [
        outcome("old", 1),
        outcome("new", 4, iteration=1),
        outcome("old", 1, seed=1),
        outcome("new", 3, seed=1, iteration=1),
    ]
    old, new = cells(markdown_table(own, against="old"))
    assert [old[name] for name in old if "old" in name] == ["-", "-"]
    # Seed 0: three questions more; seed 1: two more. All five discordant questions favour one side: 2 / 2**5.
    assert (new["against old, points"], new["only this : only old"], new["p (Holm)"]) == ("+62.5", "5 : 0", "0.062")


def test_a_comparison_takes_the_same_iteration_and_holm_corrects_for_all_rows():
    own = [
        outcome("x", 1, iteration=1),
        outcome("x", 3, iteration=2),
        outcome("y", 2, iteration=1),
        outcome("y", 4, iteration=2),
    ]
    rows = cells(markdown_table(own, against="x"))
    assert [row["only this : only x"] for row in rows] == ["-", "-", "1 : 0", "1 : 0"]
    assert [row["p (Holm)"] for row in rows] == ["-", "-", "1", "1"]
    (only_last,) = [row for row in cells(markdown_table(own, last=True)) if row["method"] == "y"]
    assert (only_last["iteration"], only_last["accuracy, %"]) == ("2", "100.0 ± 20.0")


def test_the_vote_that_costs_as_much_as_a_method():
    """One answer to all questions costs 10 FLOPs; `new` costs 100 with its training, `newer` 160, more than all votes."""
    curve = lambda most: tuple(
        VotePoint(k=k, accuracy=0.5 + k / 100, stderr=0.1, flops=10 * k) for k in range(1, most + 1)
    )
    own = [
        outcome("majority@3", 1, vote_curve=curve(3)),
        outcome("majority@12", 2, vote_curve=curve(12)),
        outcome("new", 4, iteration=1),
        outcome("newer", 4, iteration=2),
    ]
    votes = [row["vote at this cost"] for row in cells(markdown_table(own, equal_cost=True))]
    assert votes == ["54.0 (k = 4)", "54.0 (k = 4)", "60.0 (k = 10)", "62.0 (k > 12)"]
    with pytest.raises(UserError, match="No run has a vote of the base model"):
        markdown_table(own[2:], equal_cost=True)


def test_what_happened_to_the_answers():
    change = Transition(agent=0, round=2, speaker=None, wrong_to_right=1, right_to_wrong=2, kept_right=3, kept_wrong=4)
    summary = AnswerSummary(
        n=4,
        vote_accuracy=(0.25, 0.5),
        agent_accuracy=((0.25,), (0.5,)),
        best_of_agents=0.75,
        pass_at_k=(0.5,),
        transitions=(change,),
    )
    (row,) = cells(markdown_table([outcome("a", 1, answers=summary)], answers=True))
    shown = [
        row[name]
        for name in ("first vote, %", "last vote, %", "best of agents, %", "wrong to right, %", "right to wrong, %")
    ]
    assert shown == ["25.0", "50.0", "75.0", "10.0", "20.0"]
    assert row["labels right, %"] == "-"


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no result of the method c to compare with: choose one of a, b"):
        markdown_table([outcome("a", 1), outcome("b", 1)], against="c")


def test_how_much_the_agents_differ():
    """The means over seeds; a measure that was not made is left open."""
    measures = {"consensus": 0.75, "diversity": 0.25, "nll": 0.0532, "embedding": 0.5, "kl": 0.00151, "kl_to_base": 2.0}
    other = {"consensus": 0.25, "diversity": 0.75, "nll": 0.0632}
    own = [
        outcome("base", 1),
        outcome("new", 2, iteration=1, diversity=measures),
        outcome("new", 2, seed=1, iteration=1, diversity=other),
    ]
    names = ("1 - consensus, %", "NLL, nats", "embedding", "KL, nats", "KL to base, nats")
    base, new = cells(markdown_table(own, diversity=True))
    assert [base[name] for name in names] == ["-"] * 5
    assert [new[name] for name in names] == ["50.0", "0.0582", "0.5000", "0.0015", "2.0000"]
