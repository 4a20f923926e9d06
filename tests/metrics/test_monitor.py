"""Verdicts on made societies that improve, stall and collapse. Gold answers are never read."""

import json
import random

import pytest

from mft_jax.metrics.monitor import Monitor, read_signals, watch

EQUAL = lambda a, b: a.lower() == b.lower()
QUESTIONS = 60


def transcript(answers, first=None, gold="?"):
    """The transcript of a debate whose agents gave these last answers, and others in the first round."""
    rounds = zip(first or answers, answers, strict=True)
    vote = max(filter(None, answers), key=answers.count, default=None)
    return {"agents": [{"answers": list(own)} for own in rounds], "vote": vote, "correct": vote == gold, "gold": gold}


def society(agreeing, right=lambda q: f"right {q}", gold="?"):
    """Debates in which three agents agree on the right answer to the first `agreeing` questions; else one is off."""
    return [
        transcript([right(q), right(q), right(q) if q < agreeing else f"wrong {q}"], gold=gold)
        for q in range(QUESTIONS)
    ]


def verdicts(*iterations, untuned=None):
    return [monitor.verdict for monitor in watch(untuned or society(10), iterations, EQUAL)]


def test_a_society_that_settles_questions_improves():
    found = watch(society(10), [society(20), society(35), society(50)], EQUAL)
    assert [monitor.verdict for monitor in found] == ["unknown", "improving", "improving"]
    assert [(own.compared_with, own.settled, own.lost, own.invented) for own in found] == [
        (0, 0, 0, 0), (1, 15, 0, 0), (2, 15, 0, 0)
    ]  # fmt: skip
    assert found[1].reason.startswith("the agents settled 15 questions on which they disagreed, lost 0 ")


def test_a_society_that_loses_its_agreement_collapses():
    assert verdicts(society(20), society(50), society(30)) == ["unknown", "improving", "collapsing"]


def test_agreement_on_new_answers_is_no_improvement():
    """The agents agree more and more, but on answers that none of them gave before: overconfidence."""
    invented = [*society(20)[:20], *society(QUESTIONS, right=lambda q: f"new {q}")[20:]]
    improved, collapsed = watch(society(10), [society(20), invented], EQUAL)
    assert collapsed.signals.diversity == 0 < improved.signals.diversity
    assert (collapsed.verdict, collapsed.invented, collapsed.settled) == ("collapsing", 40, 0)


def test_a_slow_decline_adds_up():
    """Each step alone could be chance; all are compared with the last society that improved."""
    found = watch(society(10), [society(20), *(society(20 - 2 * k) for k in range(1, 6))], EQUAL)
    assert [own.verdict for own in found] == ["unknown", *["stalled"] * 3, *["collapsing"] * 2]
    assert {own.compared_with for own in found[1:]} == {1}


def test_one_answer_to_everything():
    constant = [transcript(["0"] * 3)] * QUESTIONS
    (monitor,) = watch(society(10), [constant], EQUAL)
    assert monitor.verdict == "collapsing"
    assert monitor.reason == "one answer wins the vote on 100% of the questions, 2% before"
    choices = [society(20, right=lambda q: "ABCD"[q % 4])] * 2
    assert verdicts(*choices, untuned=choices[0]) == ["unknown", "stalled"]


def test_answers_without_content():
    empty = [transcript(["x", None, None])] * 15 + society(20)[15:]
    (monitor,) = watch(society(10), [empty], EQUAL)
    assert (monitor.verdict, monitor.reason) == ("collapsing", "answers without content rose from 0% to 17%")


def test_noise_is_not_a_verdict():
    rng = random.Random(0)
    noisy = lambda: [society(rng.choice([0, QUESTIONS]))[q] for q in range(QUESTIONS)]
    assert verdicts(*(noisy() for _ in range(4)), untuned=noisy()) == ["unknown", "stalled", "stalled", "stalled"]


def test_one_agent_alone():
    alone = [transcript([f"{q}"]) for q in range(5)]
    assert verdicts(alone, untuned=alone) == ["unknown"]
    assert verdicts([transcript(["0"])] * 5, untuned=alone) == ["collapsing"]


def test_a_society_that_falls_apart_in_the_first_iteration():
    """Before, two or three of three agents agreed; after, each has an answer of its own to more and more questions."""
    apart = [transcript([f"{q} {agent}" for agent in "abc"]) for q in range(QUESTIONS)]
    found = {n: watch(society(20), [[*apart[:n], *society(20)[n:]]], EQUAL)[0] for n in (QUESTIONS, 30, 8, 0)}
    assert [own.verdict for own in found.values()] == ["collapsing", "collapsing", "unknown", "unknown"]
    assert found[QUESTIONS].reason == "33% of the agents agree with the votes, 78% of the untuned ones did"


def test_few_questions_are_no_evidence_of_falling_apart():
    whole = [transcript([f"{q}"] * 3) for q in range(20)]
    mixed = [transcript([f"{q}", f"{q}", f"{q} b"]) for q in range(20)]  # a fall by a third
    found = {n: watch(whole[:n], [mixed[:n]], EQUAL)[0] for n in (3, 4, 20)}
    assert [own.verdict for own in found.values()] == ["unknown", "unknown", "collapsing"]
    assert {round(own.signals.diversity, 3) for own in found.values()} == {0.333}


@pytest.mark.parametrize("gold", [None, "right 3", "new 30"])
def test_gold_answers_do_not_change_the_verdict(gold):
    iterations = [society(20, gold=gold), society(50, gold=gold), society(30, gold=gold)]
    found = watch(society(10, gold=gold), iterations, EQUAL)
    assert found == watch(society(10), [society(20), society(50), society(30)], EQUAL)
    stripped = [[{k: v for k, v in t.items() if k not in ("gold", "correct")} for t in own] for own in iterations]
    assert watch(society(10), stripped, EQUAL) == found
    assert [
        Monitor.from_dict(json.loads(json.dumps(own.__dict__ | {"signals": own.signals.__dict__}))) for own in found
    ] == found


def test_the_signals():
    debates = [
        transcript(["a", "A", "b"], first=["a", "b", "b"]),
        transcript(["c", "c", None]),
        transcript(["a", "a", "a"]),
        transcript([None, None, None]),
    ]
    signals = read_signals(debates, EQUAL)
    assert signals.diversity == pytest.approx(1 - (2 / 3 + 2 / 3 + 1 + 0) / 4)
    assert signals.unanimous == 0.25
    assert signals.vote_entropy == pytest.approx((0.6365 * 2 + 0 + 1.0986) / 4, abs=1e-4)
    assert (signals.concentration, signals.flips, signals.unparsed) == (0.5, (1 + 1 + 3) / 12, 4 / 12)
