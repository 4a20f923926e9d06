"""Which part of a debate each adapter learns from: a worked example, and debates with a scripted sampler."""

import itertools
import random

import pytest

from mft_jax.config import DebateConfig, ExperimentConfig, FinetuningConfig
from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn
from mft_jax.debate.vote import vote
from mft_jax.finetuning import Dialogues, FirstAnswers, examples, select_examples
from mft_jax.methods import make_method
from mft_jax.prompts import assistant, user
from mft_jax.seeds import example_choice
from tests.debate.scripted import make_debate, questions

COMPLETE, TRUNCATED = (Turn(end=end, prompt_tokens=5, new_tokens=3) for end in ("stop", "limit"))

# Four questions, three agents, two rounds: ([first answers], [last answers]). None: the answer could not be parsed.
DEBATES = {
    "q1": (["5", "5.0", "7"], ["5", "5", "5.0"]),
    "q2": (["3", "4", "4"], ["4", "4", "3"]),  # agent 2 abandons a correct answer: neither D- nor D+
    "q3": ([None, "9", "9"], ["9", None, "9"]),
    "q4": (["1", "2", "3"], ["2", "2", "8"]),  # gold is 1, but only the vote matters
}
GOLD = {"q1": "5", "q2": "4", "q3": "9", "q4": "1"}
VOTES = {"q1": "5", "q2": "4", "q3": "9", "q4": "2"}


def equivalent(a, b):
    return float(a) == float(b)


def transcript(id, first, last):
    agents = [
        AgentTranscript(
            messages=(user(id), assistant(f"{id} first {n}"), user("summary"), assistant(f"{id} last {n}")),
            answers=(first[n], last[n]),
            turns=(COMPLETE, COMPLETE),
        )
        for n in range(3)
    ]
    votes = tuple(
        vote(said, equivalent, seed=0, question_id=id, round=m) for m, said in enumerate((first, last), start=1)
    )
    return Transcript(
        id=id, question=id, gold=GOLD[id], agents=tuple(agents), summaries=(("",) * 3,), votes=votes, vote=votes[-1],
        summary_turns=((COMPLETE,) * 3,), correct=equivalent(votes[-1], GOLD[id]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def debates():
    return [transcript(id, *answers) for id, answers in DEBATES.items()]


def ids(chosen):
    return [example["id"] for example in chosen]


def test_worked_example(debates):
    """Votes, training answers of generators, and D- and D+ of critics, worked out by hand."""
    assert {t.id: t.vote for t in debates} == VOTES
    rng = example_choice(0, 1, 0)
    generator = [ids(FirstAnswers(n)(debates, equivalent, rng)) for n in range(3)]
    assert generator == [["q1"], ["q1", "q2", "q3", "q4"], ["q2", "q3"]]
    critic = [tuple(map(ids, Dialogues(agent=n).split(debates, equivalent))) for n in range(3)]
    assert critic == [(["q2", "q3", "q4"], ["q1"]), ([], ["q1", "q2", "q4"]), (["q1"], ["q3"])]


def lessons_of(method="multiagent_ft", agents=3, rounds=2, **tuning):
    config = ExperimentConfig(debate=DebateConfig(agents=agents, rounds=rounds), finetuning=FinetuningConfig(**tuning))
    return make_method(method, config).lessons


def test_training_sets_of_the_worked_example(debates):
    sets = select_examples(lessons_of(critic_rule="share", critic_mix=0.5), debates, equivalent, seed=0, iteration=1)
    assert list(sets) == [f"{role}_{n}" for role in ("generator", "critic") for n in range(3)]
    assert sets["generator_2"] == [
        {"id": "q2", "messages": [user("q2"), assistant("q2 first 2")], "kind": "first"},
        {"id": "q3", "messages": [user("q3"), assistant("q3 first 2")], "kind": "first"},
    ]
    assert [(e["id"], e["kind"]) for e in sets["critic_2"]] == [("q1", "corrected"), ("q3", "kept")]
    complete = [user("q1"), assistant("q1 first 2"), user("summary"), assistant("q1 last 2")]
    assert sets["critic_2"][0]["messages"] == complete
    assert [e["kind"] for e in sets["critic_0"]] == ["corrected", "kept"]
    assert sets["critic_1"] == []  # D- is empty, so the mix is empty


def one_agent(answers, vote, turns=None):
    messages = tuple(speak(str(i)) for i in range(len(answers)) for speak in (user, assistant))
    own = AgentTranscript(messages=messages, answers=answers, turns=turns or (COMPLETE,) * len(answers))
    return Transcript(
        id="q",
        question="q",
        gold=None,
        agents=(own,),
        summaries=(),
        summary_turns=(),
        votes=(),
        vote=vote,
        correct=None,
    )


def test_an_example_contains_all_rounds():
    debate = one_agent(("1", "3", "2"), "2")
    corrected, kept = Dialogues(agent=0).split([debate], equivalent)
    assert kept == []
    assert corrected[0]["messages"] == list(debate.agents[0].messages)


def test_nothing_agrees_without_a_vote():
    debate, rng = one_agent((None, None), None), example_choice(0, 1, 0)
    assert FirstAnswers(0)([debate], equivalent, rng) == []
    assert Dialogues(agent=0, share=0.0)([debate], equivalent, rng) == []


@pytest.mark.parametrize(
    ("turns", "first", "complete", "final"),
    [
        ((COMPLETE, COMPLETE), 1, 1, 1),
        ((TRUNCATED, COMPLETE), 0, 0, 1),
        ((COMPLETE, TRUNCATED), 1, 0, 0),
    ],
)
def test_truncated_answers_are_never_targets(turns, first, complete, final):
    """A dialogue is left out if one of its targets was truncated, even if its answer agrees with the vote."""
    debate, rng = one_agent(("2", "2"), "2", turns), example_choice(0, 1, 0)
    assert len(FirstAnswers(0)([debate], equivalent, rng)) == first
    assert len(Dialogues(agent=0, share=0.0)([debate], equivalent, rng)) == complete
    assert len(Dialogues(agent=0, share=0.0, answers="last")([debate], equivalent, rng)) == final


def scripted(agents, rounds):
    """Debates in which each text gives one of three answers, chosen by its random key. All texts are different."""

    def script(asked):
        if asked.is_summary:
            return f"summary {asked.key.hex()}"
        return f"{asked.speaker} on {asked.question}={asked.key[0] % 3}"

    return make_debate(script, make_method("multiagent_ft", ExperimentConfig(
        debate=DebateConfig(agents=agents, rounds=rounds))).protocol)[0]  # fmt: skip


@pytest.mark.parametrize(("agents", "rounds"), [(n, m) for n in (1, 2, 3, 5) for m in (1, 2, 3)])
def test_which_dialogues_each_adapter_learns_from(agents, rounds):
    """A second implementation, which reads only the text of the transcripts."""
    transcripts, _ = scripted(agents, rounds).run(questions(40))
    tuning = {"agents": agents, "rounds": rounds, "critic_rule": "share", "critic_mix": 0.0}
    every, sets = (
        select_examples(lessons_of(**tuning, critic_support=least), transcripts, str.__eq__, seed=0, iteration=1)
        for least in (0.0, 0.5)
    )
    answer_in = lambda message: message["content"].rpartition("=")[2]
    supported = set()
    for transcript in transcripts:
        texts = [m for own in transcript.agents for m in own.messages if m["role"] == "assistant"]
        if sum(answer_in(text) == transcript.vote for text in texts) > len(texts) / 2:
            supported.add(transcript.id)
    for n in range(agents):
        first, kept = [], []
        for transcript in transcripts:
            own = transcript.agents[n].messages
            assert all(f"_{n} on" in message["content"] for message in own if message["role"] == "assistant")
            if answer_in(own[1]) == transcript.vote:
                first.append((transcript.id, list(own[:2])))
                if rounds > 1 and answer_in(own[-1]) == transcript.vote:
                    kept.append((transcript.id, list(own)))
        assert [(e["id"], e["messages"]) for e in sets[f"generator_{n}"]] == first
        assert [(e["id"], e["messages"]) for e in every[f"critic_{n}"]] == kept
        assert [(e["id"], e["messages"]) for e in sets[f"critic_{n}"]] == [own for own in kept if own[0] in supported]
    assert first
    assert bool(kept) == (rounds > 1)


@pytest.mark.parametrize("gold", ["shuffled", "absent"])
def test_gold_answers_change_no_training_set(gold):
    right = [str(i % 3) for i in range(40)]
    other = random.Random(0).sample(right, 40) if gold == "shuffled" else [None] * 40
    sets = []
    for answers in (right, other):
        transcripts, _ = scripted(3, 2).run(questions(40, gold=lambda i, answers=answers: answers[i]))
        sets.append(select_examples(lessons_of(), transcripts, str.__eq__, seed=0, iteration=1))
    assert sets[0] == sets[1]
    assert all(sets[0][f"{role}_{n}"] for role in ("generator", "critic") for n in range(3))


@pytest.mark.parametrize(
    ("corrected", "kept", "share", "expected"),
    [
        (20, 150, 0.5, (20, 20)),
        (20, 150, 0.2, (20, 80)),
        (60, 30, 0.5, (30, 30)),
        (60, 30, 0.75, (60, 20)),
        (20, 150, 0.0, (0, 150)),
        (20, 150, 1.0, (20, 0)),
        (0, 150, 0.5, (0, 0)),
        (20, 0, 0.5, (0, 0)),
        (0, 0, 0.5, (0, 0)),
    ],
)
def test_mix_sizes(corrected, kept, share, expected):
    assert examples.mix_sizes(corrected, kept, share) == expected


def pool(kind, count):
    return [{"id": f"{kind}{i}", "messages": [], "kind": kind} for i in range(count)]


def mixed(rule, *path, corrected=40, kept=300):
    pools, rng = (pool("corrected", corrected), pool("kept", kept)), example_choice(*path)
    return ids(examples.mix(*pools, 0.5, rng) if rule == "share" else examples.mix_as_released(*pools, rng))


@pytest.mark.parametrize("rule", ["share", "released_code"])
def test_the_selection_depends_on_seed_iteration_and_agent(rule):
    assert mixed(rule, 3, 1, 0) == mixed(rule, 3, 1, 0)
    assert len({tuple(mixed(rule, *path)) for path in [(3, 1, 0), (4, 1, 0), (3, 2, 0), (3, 1, 1)]}) == 4


def test_rule_share_draws_without_replacement():
    chosen = mixed("share", 0, 1, 0)
    assert len(set(chosen)) == len(chosen) == 80


def test_rule_released_code():
    """All of D- in order, each followed by an example of D+ in about half of the cases."""
    chosen = mixed("released_code", 0, 1, 0, corrected=400)
    assert [id for id in chosen if id.startswith("corrected")] == [f"corrected{i}" for i in range(400)]
    after = [id for id in chosen if id.startswith("kept")]
    assert 160 < len(after) < 240
    assert all(before.startswith("corrected") for before, id in itertools.pairwise(chosen) if id in after)
    assert mixed("released_code", 0, 1, 0, corrected=3, kept=0) == ["corrected0", "corrected1", "corrected2"]
