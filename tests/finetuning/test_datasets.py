import itertools

import pytest

from mft_jax.config import FinetuningConfig
from mft_jax.debate.transcript import AgentTranscript, Transcript
from mft_jax.debate.vote import vote
from mft_jax.finetuning import datasets
from mft_jax.prompts import assistant, user

# Four questions, three agents, two rounds: [first answers], [last answers]. None: no answer could be parsed.
DEBATES = {
    "q1": (["5", "5.0", "7"], ["5", "5", "5.0"]),
    "q2": (["3", "4", "4"], ["4", "4", "3"]),  # agent 2 gives up a right answer: neither D- nor D+
    "q3": ([None, "9", "9"], ["9", None, "9"]),
    "q4": (["1", "2", "3"], ["2", "2", "8"]),  # gold is 1: the vote is what counts
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
        )
        for n in range(3)
    ]
    votes = tuple(
        vote(said, equivalent, seed=0, question_id=id, round=m) for m, said in enumerate((first, last), start=1)
    )
    return Transcript(
        id=id, question=id, gold=GOLD[id], agents=tuple(agents), summaries=(("",) * 3,), votes=votes, vote=votes[-1],
        correct=equivalent(votes[-1], GOLD[id]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def debates():
    return [transcript(id, *answers) for id, answers in DEBATES.items()]


def ids(examples):
    return [example["id"] for example in examples]


def test_worked_example(debates):
    """Votes, D_gen, D- and D+ of each agent, by hand."""
    assert {t.id: t.vote for t in debates} == VOTES
    generator = [ids(datasets.generator_data(debates, n, equivalent)) for n in range(3)]
    assert generator == [["q1"], ["q1", "q2", "q3", "q4"], ["q2", "q3"]]
    critic = [tuple(map(ids, datasets.critic_data(debates, n, equivalent))) for n in range(3)]
    assert critic == [(["q2", "q3", "q4"], ["q1"]), ([], ["q1", "q2", "q4"]), (["q1"], ["q3"])]


def test_training_sets_of_the_worked_example(debates):
    sets = datasets.training_sets(debates, equivalent, FinetuningConfig(critic_mix=0.5), seed=0, iteration=1)
    assert sets.corrected == (3, 0, 1)
    assert sets.kept == (1, 3, 1)
    assert sets.generators[2] == [
        {"id": "q2", "messages": [user("q2"), assistant("q2 first 2")], "kind": "first"},
        {"id": "q3", "messages": [user("q3"), assistant("q3 first 2")], "kind": "first"},
    ]
    assert [(e["id"], e["kind"]) for e in sets.critics[2]] == [("q1", "corrected"), ("q3", "kept")]
    whole = [user("q1"), assistant("q1 first 2"), user("summary"), assistant("q1 last 2")]
    assert sets.critics[2][0]["messages"] == whole
    assert [e["kind"] for e in sets.critics[0]] == ["corrected", "kept"]
    assert sets.critics[1] == []  # no D-: a mix that is half D- is empty
    assert sets.agents == sets.generators + sets.critics


def test_all_rounds_stay_in_a_critics_dialogue():
    messages = tuple(f(str(i)) for i in range(3) for f in (user, assistant))
    said = AgentTranscript(messages=messages, answers=("1", "3", "2"))
    debate = Transcript(
        id="q", question="q", gold=None, agents=(said,), summaries=(), votes=(), vote="2", correct=False
    )
    corrected, kept = datasets.critic_data([debate], 0, equivalent)
    assert kept == []
    assert corrected[0]["messages"] == list(messages)


def test_nothing_agrees_without_a_vote():
    said = AgentTranscript(messages=(user("q"), assistant("?")) * 2, answers=(None, None))
    debate = Transcript(
        id="q", question="q", gold=None, agents=(said,), summaries=(), votes=(), vote=None, correct=False
    )
    sets = datasets.training_sets([debate], equivalent, FinetuningConfig(critic_mix=0.0), seed=0, iteration=1)
    assert sets.agents == ([], [])


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
    assert datasets.mix_sizes(corrected, kept, share) == expected


def pool(kind, count):
    return [{"id": f"{kind}{i}", "messages": [], "kind": kind} for i in range(count)]


def mixed(rule, *path, corrected=40, kept=300):
    config = FinetuningConfig(critic_rule=rule)
    rng = datasets.random_stream(*path, datasets.MIX)
    return ids(datasets.mix(pool("corrected", corrected), pool("kept", kept), config, rng))


@pytest.mark.parametrize("rule", ["share", "released_code"])
def test_selection_follows_from_seed_iteration_and_agent(rule):
    assert mixed(rule, 3, 1, 0) == mixed(rule, 3, 1, 0)
    assert len({tuple(mixed(rule, *path)) for path in [(3, 1, 0), (4, 1, 0), (3, 2, 0), (3, 1, 1)]}) == 4


def test_rule_share_draws_without_replacement():
    chosen = mixed("share", 0, 1, 0)
    assert len(set(chosen)) == len(chosen) == 80


def test_rule_released_code():
    """All of D-, in order, each followed by one of D+ in about half of the cases."""
    chosen = mixed("released_code", 0, 1, 0, corrected=400)
    assert [id for id in chosen if id.startswith("corrected")] == [f"corrected{i}" for i in range(400)]
    after = [id for id in chosen if id.startswith("kept")]
    assert 160 < len(after) < 240
    assert all(before.startswith("corrected") for before, id in itertools.pairwise(chosen) if id in after)
    assert mixed("released_code", 0, 1, 0, corrected=3, kept=0) == ["corrected0", "corrected1", "corrected2"]
