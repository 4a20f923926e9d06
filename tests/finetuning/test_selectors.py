"""Which dialogues are compared or rewarded: worked examples of three questions and three agents."""

import dataclasses
import re

import numpy as np
import pytest

from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn
from mft_jax.errors import UserError
from mft_jax.finetuning import Lesson, Ruling, select_examples
from mft_jax.finetuning.examples import Dialogues, Solutions, TrueAnswers
from mft_jax.finetuning.preferences import ConsensusPairs, Desirable, VotedPairs
from mft_jax.finetuning.rewards import Answer, Novel, Rewarded, group_advantages, novelty_rewards
from mft_jax.prompts import assistant, user
from tests.finetuning.conftest import CONFIG

COMPLETE, TRUNCATED = (Turn(end=end, prompt_tokens=5, new_tokens=3) for end in ("stop", "limit"))
RNG = np.random.default_rng(0)


def transcript(id, *rounds, vote, gold=None, truncated=()):
    """`rounds` are lists of the agents' answers; `truncated` agents do not end their last turn."""
    agents = []
    for n in range(len(rounds[0])):
        said = [message for m in range(len(rounds)) for message in (user(f"{id} asks {m}"), assistant(f"{id} {n} {m}"))]
        turns = [COMPLETE] * len(rounds)
        turns[-1] = TRUNCATED if n in truncated else COMPLETE
        answers = tuple(answers[n] for answers in rounds)
        agents.append(AgentTranscript(messages=tuple(said), answers=answers, turns=tuple(turns)))
    return Transcript(
        id=id, question=id, gold=gold, agents=tuple(agents), summaries=(), summary_turns=(), votes=(vote,) * len(rounds),
        vote=vote, correct=None,
    )  # fmt: skip


DEBATES = [
    transcript("split", "577", "557", vote="5"),  # agent 2 disagrees in the end
    transcript("agreed", "111", "111", vote="1"),
    transcript("unparsed", ["3", None, "4"], ["3", "3", None], vote="3"),
    transcript("cut", "891", "889", vote="8", truncated=[0]),
    transcript("lost", [None] * 3, [None] * 3, vote=None),
]


def said(messages):
    """(question, agent, its last round) of a dialogue."""
    question, agent, round = messages[-1]["content"].split()
    return question, int(agent), int(round)


def chosen(examples):
    return [said(example["messages"])[:2] for example in examples]


def test_pairs_hold_a_dialogue_that_agrees_with_the_vote_and_one_that_does_not():
    pairs = ConsensusPairs()(DEBATES, str.__eq__, RNG)
    both = [(said(p["messages"]), said(p["counterpart"])) for p in pairs]
    whole = lambda question, a, b: ((question, a, 1), (question, b, 1))
    assert both == [
        whole("split", 0, 2), whole("split", 1, 2), whole("unparsed", 0, 2), whole("unparsed", 1, 2), whole("cut", 1, 2),
    ]  # fmt: skip
    own = [ConsensusPairs(agent=n)(DEBATES, str.__eq__, RNG) for n in range(3)]
    assert [chosen(pairs) for pairs in own] == [
        [("split", 0), ("unparsed", 0)],
        [("split", 1), ("unparsed", 1), ("cut", 1)],
        chosen(pairs),  # it is the one that disagrees
    ]
    assert ConsensusPairs()(DEBATES[1:2], str.__eq__, RNG) == []


def test_desirable_dialogues_have_the_weight_of_the_others_and_answers_to_other_questions():
    found = Desirable(agent=2)(DEBATES, str.__eq__, RNG)
    assert [(e["id"], e["kind"], e["value"]) for e in found] == [
        ("split", "disagreeing", -1), ("agreed", "agreeing", 1), ("unparsed", "disagreeing", -1), ("cut", "disagreeing", -1),
    ]  # fmt: skip
    assert [e["weight"] for e in found] == pytest.approx([4 / 6, 4 / 2, 4 / 6, 4 / 6])
    assert [said(e["counterpart"])[0] for e in found] == ["agreed", "unparsed", "cut", "split"]
    assert [e["counterpart"][0] for e in found] == [e["messages"][0] for e in found]
    everyone = Desirable()(DEBATES, str.__eq__, RNG)
    assert len(everyone) == 3 + 3 + 3 + 2
    assert sum(e["weight"] for e in everyone if e["value"] > 0) == pytest.approx(11 / 2)
    assert all(e["id"] != said(e["counterpart"])[0] for e in everyone)
    only = Desirable()(DEBATES[1:2], str.__eq__, RNG)  # nobody disagrees
    assert [e["weight"] for e in only] == [1.0] * 3


def test_voted_pairs_are_weighted_by_the_difference_of_their_votes():
    samples = [
        transcript("clear", ["1", "1", "1", "2", "3"], vote="1"),
        transcript("tied", ["1", "1", "2", "2", None], vote="1"),
        transcript("agreed", ["1"] * 5, vote="1"),
        transcript("close", ["2", None, "1", "1", "1"], vote="1", truncated=[2, 3]),
    ]
    pairs = VotedPairs()(samples, str.__eq__, np.random.default_rng(1))
    assert [(p["id"], p["weight"]) for p in pairs] == [("clear", 2 / 5), ("close", 2 / 5)]
    assert said(pairs[1]["messages"])[1] == 4  # the only complete one of the majority
    assert said(pairs[1]["counterpart"])[1] == 0
    drawn = {said(VotedPairs()(samples[:1], str.__eq__, np.random.default_rng(i))[0]["messages"])[1] for i in range(20)}
    assert drawn == {0, 1, 2}


def test_advantages_are_relative_to_the_answers_of_all_agents():
    assert group_advantages([1, 1, 0]) == pytest.approx([0.707107, 0.707107, -1.414214])
    assert group_advantages([1, 1]) == [0, 0]
    found = Rewarded()(DEBATES, str.__eq__, RNG)
    assert [(e["id"], e["value"]) for e in found] == [
        ("split", 0.707107), ("split", 0.707107), ("split", -1.414214),
        ("unparsed", 0.707107), ("unparsed", 0.707107), ("unparsed", -1.414214), ("cut", 1.0), ("cut", -1.0),
    ]  # fmt: skip
    first = Rewarded(agent=1, first=True)(DEBATES, str.__eq__, RNG)
    assert [(said(e["messages"]), e["value"], e["kind"]) for e in first] == [
        (("split", 1, 0), -0.707107, "disagreeing"),
        (("unparsed", 1, 0), -0.707107, "disagreeing"),
        (("cut", 1, 0), -0.707107, "disagreeing"),
    ]


def test_novelty_raises_rewards_within_a_side_only():
    """By hand: three agreeing answers, two of them alike; one that disagrees; one without an answer."""
    states = np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])
    sides = [(True, True), (True, True), (True, True), (False, True), (False, False)]
    answers = [Answer(i, [], agrees, parsed) for i, (agrees, parsed) in enumerate(sides)]
    # Novelty of the alike ones: 1 - (1 + 0)/2/2 - 1/2 = 0.25; of the third: 1 - 0 - 0 = 1.
    assert novelty_rewards(states, answers) == [0.5, 0.5, 1.0, -0.75, -1.0]
    nearer = states + np.array([[0, 0], [0, 0.5], [0, 0], [0, 0], [0, 0]])  # it moves towards the third
    rewards = novelty_rewards(nearer, answers)
    assert rewards[2] == 1.0
    assert rewards[0] != rewards[1]
    assert min(rewards[:3]) == 0.5


def test_novel_answers_are_embedded_once():
    asked = []

    def embed(dialogues):
        asked.extend(dialogues)
        return np.eye(len(dialogues))[:, ::-1]

    found = Novel()(DEBATES[:2], str.__eq__, RNG, embed)
    assert [said(messages) for messages in asked] == [(id, n, 0) for id in ("split", "agreed") for n in range(3)]
    # All are equally unlike, so there is no difference where all agree; elsewhere the two sides differ.
    assert [(e["id"], e["value"] > 0) for e in found] == [("split", True), ("split", False), ("split", False)]


def test_true_answers_with_and_without_a_hint():
    tries = [
        transcript("right", ["7"], vote="7", gold="7"),
        transcript("hinted", ["6"], ["7"], vote="7", gold="7"),
        transcript("wrong", ["6"], ["8"], vote="8", gold="7"),
        transcript("cut", ["6"], ["7"], vote="7", gold="7", truncated=[0]),
    ]
    found = TrueAnswers()(tries, str.__eq__, RNG)
    assert [(e["id"], e["kind"]) for e in found] == [("right", "first"), ("hinted", "hinted")]
    assert [m["content"] for m in found[1]["messages"]] == ["hinted asks 0", "hinted 0 1"]


def test_solutions_are_answers_to_the_question():
    found = Solutions(3)(DEBATES, str.__eq__, RNG)
    assert [(said(e["messages"]), e["kind"]) for e in found if e["id"] != "agreed"] == [
        (("split", 0, 0), "first"),
        (("split", 1, 1), "corrected"),
        (("unparsed", 0, 0), "first"),
        (("unparsed", 1, 1), "corrected"),
        (("cut", 0, 0), "first"),
        (("cut", 1, 1), "corrected"),
    ]
    assert all(len(e["messages"]) == 2 and e["messages"][0]["content"].endswith("asks 0") for e in found)


def test_rules_that_keep_every_dialogue():
    every = Dialogues(agent=1, rule="all")(DEBATES, str.__eq__, RNG)
    assert [(e["id"], e["kind"]) for e in every] == [
        ("split", "corrected"), ("unparsed", "corrected"), ("cut", "corrected"), ("agreed", "kept"),
    ]  # fmt: skip
    assert all("weight" not in e for e in every)
    weighted = Dialogues(agent=1, rule="weighted", share=0.25)(DEBATES, str.__eq__, RNG)
    assert [e["id"] for e in weighted] == [e["id"] for e in every]
    assert [e["weight"] for e in weighted] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 3])
    only_kept = Dialogues(agent=1, rule="weighted", share=0.0)(DEBATES, str.__eq__, RNG)
    assert [e["id"] for e in only_kept] == ["agreed"]


def test_which_answers_of_a_dialogue_a_critic_learns():
    """With `agreeing`, the answers that agree with the vote and are complete; dialogues of which all are have no list."""
    rounds = ("577", "555", "755", "555")
    (debate,) = [transcript("long", *rounds, vote="5", truncated=[2])]
    cut = [TRUNCATED, COMPLETE, COMPLETE, COMPLETE]
    first = dataclasses.replace(debate.agents[0], turns=tuple(cut))
    cut_first = dataclasses.replace(debate, agents=(first, *debate.agents[1:]))

    def learned(own, agent, answers):
        return [e.get("learned") for e in Dialogues(agent=agent, rule="all", answers=answers)([own], str.__eq__, RNG)]

    assert [learned(debate, 0, answers) for answers in ("all", "agreeing", "last")] == [[None], [[0, 1, 3]], [[-1]]]
    assert [learned(debate, 1, answers) for answers in ("all", "agreeing", "last")] == [[None], [[1, 2, 3]], [[-1]]]
    assert [learned(debate, 2, answers) for answers in ("all", "agreeing", "last")] == [[], [], []]  # its last is cut
    assert [learned(cut_first, 0, answers) for answers in ("all", "agreeing", "last")] == [[], [[1, 3]], [[-1]]]
    whole = transcript("short", "57", "55", vote="5")
    assert [learned(whole, agent, "agreeing") for agent in (0, 1)] == [[None], [[1]]]
    kinds = [Dialogues(agent=n, rule="all", answers="agreeing")([whole], str.__eq__, RNG)[0]["kind"] for n in (0, 1)]
    assert kinds == ["kept", "corrected"]


@pytest.mark.parametrize("selector", [ConsensusPairs, Desirable, Rewarded])
def test_rivals_that_learn_the_last_answer_only(selector):
    """The examples are the same but for the turns that are learned, and dialogues whose first answer alone is cut come in."""
    every, last = (selector(final_turn_only=only)(DEBATES, str.__eq__, RNG) for only in (False, True))
    assert [{**e, "learned": [-1]} for e in every] == last
    assert all("learned" not in e for e in every)
    own = DEBATES[0].agents[0]
    cut = dataclasses.replace(own, turns=(TRUNCATED, COMPLETE))
    debate = dataclasses.replace(DEBATES[0], agents=(cut, *DEBATES[0].agents[1:]))
    counts = [len(selector(final_turn_only=only)([debate], str.__eq__, RNG)) for only in (False, True)]
    assert counts[0] < counts[1]


def test_first_answers_are_learned_whole():
    assert all("learned" not in e for e in Rewarded(first=True, final_turn_only=True)(DEBATES, str.__eq__, RNG))


def test_questions_below_the_minimum_vote_share_are_left_out():
    lesson = lambda share: Lesson(
        adapter="ann", select=Rewarded(), settings=CONFIG.generator, field="", stream=0, min_vote_share=share
    )
    ids = lambda share: {
        e["id"] for e in select_examples([lesson(share)], DEBATES, str.__eq__, seed=0, iteration=1)["ann"]
    }
    assert ids(0.0) == ids(0.66) == {"split", "unparsed", "cut"}
    assert ids(0.67) == set()


@pytest.mark.parametrize(
    ("select", "complaint"),
    [
        (lambda *_: None, "returned None, expected a list of examples"),
        (lambda *_: [{"id": "split"}], "returned the example {'id': 'split'}, expected {\"id\": text, \"messages\""),
        (lambda *_: [{"id": "split", "messages": ["x"], "kind": "first"}], "returned the example"),
        (lambda *_: 1 / 0, f"raised ZeroDivisionError: division by zero ({__file__}, line "),
    ],
    ids=["nothing", "no messages", "no chat messages", "an error"],
)
def test_a_selector_of_the_user_that_fails_is_named(select, complaint):
    lesson = Lesson(adapter="ann", select=select, settings=CONFIG.generator, field="", stream=0)
    with pytest.raises(UserError, match=re.escape(f"The selector of the adapter ann {complaint}")):
        select_examples([lesson], DEBATES, str.__eq__, seed=0, iteration=1)


def test_debates_in_which_too_few_answers_of_all_rounds_agree_with_the_vote_are_left_out():
    """Of six answers, all of "agreed" agree, and three of each other debate, whatever the last round looks like."""

    def ids(support, rulings=None):
        lesson = Lesson(
            adapter="ann", select=Dialogues(agent=1, rule="all", answers="last"), settings=CONFIG.generator, field="",
            stream=0, support=support,
        )  # fmt: skip
        found = select_examples([lesson], DEBATES, str.__eq__, seed=0, iteration=1, rulings=rulings)["ann"]
        return [e["id"] for e in found]

    assert sorted(ids(0.0)) == sorted(ids(0.49)) == ["agreed", "cut", "split", "unparsed"]
    assert ids(0.5) == ids(0.99) == ["agreed"]
    assert ids(1.0) == []
    known = {"split": Ruling(id="split", answer="5"), "cut": Ruling(id="cut", answer=None, wrong=("9",))}
    assert sorted(ids(0.5, known)) == ["agreed", "split"]
