"""What verdicts of people come to, and how they change what each method learns."""

import dataclasses
import itertools

import numpy as np
import pytest

from mft_jax.config import DebateConfig, ExperimentConfig, FinetuningConfig
from mft_jax.finetuning import select_examples
from mft_jax.finetuning.feedback import MarkedDialogue, Place, Ruling, Said, Verdict, rule, ruled, weighted
from mft_jax.finetuning.preferences import ConsensusPairs, Desirable, VotedPairs
from mft_jax.methods import make_method
from mft_jax.prompts import assistant, user
from tests.finetuning.test_selectors import said, transcript

RNG = np.random.default_rng(0)
times = itertools.count()
ANSWERS = {(1, 1, 1): "5", (1, 2, 1): "6", (1, 3, 1): "5.0", (2, 1, 1): "7", (2, 2, 1): None}


def same(a, b):
    return float(a) == float(b)


def at(second):
    return f"2026-01-01T00:00:{second:02}Z"


def mark(word, *place, second):
    return Verdict(id="q", time=at(second), place=Place(*place), mark=word)


def written(answer, second):
    return Verdict(id="q", time=at(second), answer=answer)


def find(place):
    dialogue = (user("q"), assistant(f"q {place.agent - 1} {place.round - 1}"))
    return Said(ANSWERS[place], dialogue, is_complete=place != (1, 3, 1))


def come_to(*verdicts):
    """(the ruling, [(overruled, newer)] as positions in the given verdicts)."""
    ruling, conflicts = rule(verdicts, find, same)
    return ruling, [(verdicts.index(old), verdicts.index(new)) for old, new in conflicts]


def test_a_mark_speaks_about_the_answer_and_a_written_answer_about_the_question():
    ruling, conflicts = come_to(mark("right", 1, 1, 1, second=1), mark("wrong", 1, 2, 1, second=2))
    assert (ruling.answer, ruling.wrong, conflicts) == ("5", ("6",), [])
    assert [(own.agent, own.mark) for own in ruling.marked] == [(0, "right"), (1, "wrong")]
    ruling, _ = come_to(written("9", 1), mark("wrong", 1, 2, 1, second=2))
    assert (ruling.answer, ruling.wrong) == ("9", ("6",))
    assert len(ruling.verdicts) == 2
    ruling, _ = come_to(mark("wrong", 2, 2, 1, second=1))  # it could not be parsed: only the dialogue is wrong
    assert (ruling.answer, ruling.wrong, ruling.marked[0].mark) == (None, (), "wrong")
    ruling, _ = come_to(mark("best", 1, 3, 1, second=1))  # its text was cut, so it is not trained on
    assert (ruling.answer, ruling.marked) == ("5.0", ())


def test_the_newest_verdict_counts_and_contradictions_are_reported():
    ruling, conflicts = come_to(mark("wrong", 1, 1, 1, second=5), mark("right", 1, 1, 1, second=2))
    assert (ruling.answer, ruling.wrong, conflicts) == (None, ("5",), [(1, 0)])  # by time, not by place in the file
    ruling, conflicts = come_to(mark("right", 1, 1, 1, second=1), mark("best", 1, 1, 1, second=2))
    assert (ruling.answer, ruling.marked[0].mark, conflicts) == ("5", "best", [])
    ruling, conflicts = come_to(mark("right", 1, 1, 1, second=1), mark("right", 1, 2, 1, second=2))
    assert (ruling.answer, conflicts) == ("6", [(0, 1)])  # two answers cannot both be right
    ruling, conflicts = come_to(mark("wrong", 1, 1, 1, second=1), mark("right", 1, 3, 1, second=2))
    assert (ruling.answer, ruling.wrong, conflicts) == ("5.0", (), [(0, 1)])  # 5 and 5.0 are the same answer
    ruling, conflicts = come_to(written("5", 1), written("7", 3), mark("right", 1, 1, 1, second=2))
    assert (ruling.answer, len(ruling.verdicts), conflicts) == ("7", 1, [(0, 1), (2, 1)])


def test_a_verdict_can_be_withdrawn():
    assert come_to(mark("right", 1, 1, 1, second=1), mark("none", 1, 1, 1, second=2)) == (None, [])
    ruling, conflicts = come_to(written("9", 1), written(None, 2), mark("wrong", 1, 2, 1, second=3))
    assert (ruling.answer, ruling.wrong, conflicts) == (None, ("6",), [])


def test_times_of_different_zones_are_compared():
    early = Verdict(id="q", time="2026-01-01T12:00:00+05:00", answer="1")
    late = Verdict(id="q", time="2026-01-01T08:00:00", answer="2")  # UTC
    assert come_to(late, early)[0].answer == "2"


DEBATES = [
    transcript("split", "577", "557", vote="5"),
    transcript("agreed", "111", "111", vote="1"),
    transcript("other", "889", "889", vote="8"),
]


def test_the_verdict_replaces_the_vote():
    split = DEBATES[0]
    judged = lambda debate=split, voted="last", **known: (
        ruled(debate, Ruling(id="split", **known), str.__eq__, seed=0, ties="none", voted=voted).vote
    )
    assert judged(answer="7") == "7"
    assert judged(answer="99") == "99"
    assert judged(answer=None, wrong=("5",)) == "7"  # the others vote again
    assert judged(answer=None, wrong=("7",)) == "5"
    assert judged(answer=None, wrong=("5", "7")) is None
    unsettled = transcript("split", "577", "563", vote="5")
    assert judged(unsettled, answer=None, wrong=("5",)) is None
    assert judged(unsettled, "all", answer=None, wrong=("5",)) == "7"  # first answers vote too
    assert split.vote == "5"


def lessons(method, **tuning):
    config = ExperimentConfig(debate=DebateConfig(agents=3), finetuning=FinetuningConfig(**tuning))
    return make_method(method, config).lessons


def select(method, rulings, weight=1.0, **tuning):
    return select_examples(
        lessons(method, **tuning), DEBATES, str.__eq__, seed=0, iteration=1, rulings=rulings, weight=weight
    )


RULINGS = {"split": Ruling(id="split", answer="7")}


def test_without_verdicts_nothing_changes():
    assert select("multiagent_ft", {}, weight=5.0) == select("multiagent_ft", None)
    assert all("weight" not in example for own in select("multiagent_ft", {}, 5.0).values() for example in own)


def test_agents_learn_what_agrees_with_the_verdict_at_its_weight():
    sets = select("multiagent_ft", RULINGS, weight=3.0, critic_rule="all")
    ids = lambda name: [(example["id"], example.get("weight", 1.0)) for example in sets[name]]
    assert ids("generator_0") == [("agreed", 1.0), ("other", 1.0)]
    assert ids("generator_1") == [("split", 3.0), ("agreed", 1.0), ("other", 1.0)]
    assert ids("critic_2") == [("split", 3.0), ("agreed", 1.0)]
    unheard = select("multiagent_ft", {"split": Ruling(id="split", answer="99")}, critic_rule="all")
    assert not any(example["id"] == "split" for own in unheard.values() for example in own)


def test_a_right_answer_passes_every_share_of_votes():
    strict = lambda rulings: [example["id"] for example in select("majority_ft", rulings, min_vote_share=0.9)["agent"]]
    assert strict({}) == ["agreed"] * 3
    assert strict(RULINGS) == ["split"] * 2 + ["agreed"] * 3  # although one agent of three agrees with it in the end
    assert strict({"split": Ruling(id="split", answer=None, wrong=("9",))}) == ["agreed"] * 3


def test_an_advantage_is_multiplied_and_a_sign_is_not():
    sets = select("ttrl", RULINGS, weight=2.0)["agent"]
    plain = select("ttrl", RULINGS)["agent"]
    assert [own["value"] for own in sets if own["id"] == "split"] == pytest.approx(
        [2 * own["value"] for own in plain if own["id"] == "split"]
    )
    assert [own["value"] > 0 for own in plain if own["id"] == "split"] == [False, True, True]
    assert [own["value"] for own in sets if own["id"] == "other"] == [
        own["value"] for own in plain if own["id"] == "other"
    ]
    desirable = {"id": "q", "messages": [], "kind": "agreeing", "value": -1.0, "weight": 0.5, "counterpart": []}
    assert weighted(desirable, 4.0) == desirable | {"weight": 2.0}


def marked(question, agent, word, round=1):
    return MarkedDialogue(agent, word, (user(question), assistant(f"{question} {agent} {round}")))


def test_marks_become_preferences():
    """Right or best against wrong, and best against right, for the agents that gave these answers."""
    marks = (marked("split", 0, "wrong"), marked("split", 1, "right"), marked("split", 2, "best"))
    rulings = {"split": Ruling(id="split", answer=None, marked=marks)}
    whole = lambda pairs: [(said(own["messages"])[1], said(own["counterpart"])[1]) for own in pairs if "q" not in own]
    pairs = ConsensusPairs()([], str.__eq__, RNG, rulings)
    assert whole(pairs) == [(1, 0), (2, 0), (2, 1)]
    assert whole(ConsensusPairs(agent=1)([], str.__eq__, RNG, rulings)) == [(1, 0), (2, 1)]
    assert whole(VotedPairs()([], str.__eq__, RNG, rulings)) == [(1, 0), (2, 0), (2, 1)]
    both = Desirable()([], str.__eq__, RNG, rulings)
    assert [(said(own["messages"])[1], own["value"]) for own in both] == [(0, -1.0), (1, 1.0), (2, 1.0)]
    assert [own["weight"] for own in both] == [1.5, 0.75, 0.75]


def test_a_mark_counts_instead_of_the_vote_on_the_same_dialogue():
    debate = DEBATES[0]
    wrong = MarkedDialogue(0, "wrong", debate.agents[0].messages)
    rulings = {"split": Ruling(id="split", answer=None, marked=(wrong,))}
    found = Desirable()([debate], str.__eq__, RNG, rulings)
    assert [(said(own["messages"])[1], own["value"]) for own in found] == [(1, 1.0), (2, -1.0), (0, -1.0)]
    right = dataclasses.replace(wrong, agent=2, mark="right", messages=debate.agents[2].messages)
    doubled = {"split": Ruling(id="split", answer="7", marked=(wrong, right))}
    pairs = select_examples(lessons("maca_single"), [debate], str.__eq__, seed=0, iteration=1, rulings=doubled)
    both = [(said(own["messages"])[1], said(own["counterpart"])[1]) for own in pairs["agent"]]
    assert sorted(both) == [(2, 0), (2, 1)]  # the pair of the marks is there once


def test_scpo_prefers_the_right_answer_to_the_most_common_one():
    pairs = lambda rulings: VotedPairs()(
        [ruled(own, rulings[own.id], str.__eq__, seed=0, ties="random", voted="last") for own in DEBATES[:1]],
        str.__eq__,
        RNG,
        rulings,
    )
    (pair,) = pairs(RULINGS)
    assert said(pair["messages"])[:2] == ("split", 2)
    assert said(pair["counterpart"])[1] in (0, 1)
    assert pair["weight"] == 1.0
    assert pairs({"split": Ruling(id="split", answer="99")}) == []
