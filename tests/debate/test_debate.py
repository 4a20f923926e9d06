"""With a scripted sampler: who speaks in each round, what exactly agents are shown, which answers are voted on."""

import dataclasses
import json
import threading
import time

import pytest

from mft_jax.config import DebateConfig, ExperimentConfig
from mft_jax.debate import Protocol, Transcript, everyone, turn_counts
from mft_jax.methods import make_method
from mft_jax.tasks import grader
from tests.debate.scripted import make_debate, questions

SHAPES = [(n, m) for n in (1, 2, 3, 5) for m in (1, 2, 3)]


def protocol_of(agents, rounds, method="multiagent_ft"):
    return make_method(method, ExperimentConfig(debate=DebateConfig(agents=agents, rounds=rounds))).protocol


def distinct(asked):
    """A script whose texts are all different: each names its speaker, round and question."""
    if asked.is_summary:
        listed = asked.messages[0]["content"].split("\n")[1:-1]
        return f"summary for {asked.question} of {' & '.join(line.partition(': ')[2] for line in listed)}"
    return f"{asked.speaker} in round {asked.round} on {asked.question}={asked.speaker}"


@pytest.mark.parametrize(("agents", "rounds"), SHAPES)
def test_who_speaks_and_what_each_agent_is_shown(agents, rounds):
    debate, sampler = make_debate(distinct, protocol_of(agents, rounds))
    transcripts, usages = debate.run(questions(2))
    assert len(sampler.asked) == debate.samples(2) == sum(len(usage.lengths) for usage in usages)
    role = lambda m, n: f"{'generator' if m == 1 else 'critic'}_{n}"
    said = lambda m, n, q: f"{role(m, n)} in round {m} on {q}={role(m, n)}"
    for transcript in transcripts:
        text = transcript.question
        for n, agent in enumerate(transcript.agents):
            expected = [{"role": "user", "content": f"{text}\nsolve"}]
            for m in range(1, rounds + 1):
                expected.append({"role": "assistant", "content": said(m, n, text)})
                if m == rounds:
                    break
                others = " & ".join(said(m, other, text) for other in range(agents) if other != n)
                summary = f"summary for {text} of {others}"
                shown = f"Other solvers say:\n{summary}\ncheck" if agents > 1 else "again"
                expected.append({"role": "user", "content": shown})
                if agents > 1:
                    assert transcript.summaries[m - 1][n] == summary
                    assert said(m, n, text) not in summary
            assert list(agent.messages) == expected
            assert agent.answers == tuple(role(m, n) for m in range(1, rounds + 1))
        assert len(transcript.summaries) == (rounds - 1 if agents > 1 else 0)
        assert len(transcript.votes) == rounds


@pytest.mark.parametrize(("agents", "rounds"), SHAPES)
def test_the_prompts_of_summaries(agents, rounds):
    """The base model gets the question and the other answers of the previous round in order, in a separate dialogue."""
    debate, sampler = make_debate(distinct, protocol_of(agents, rounds))
    debate.run(questions(1))
    summaries = [asked for asked in sampler.asked if asked.is_summary]
    assert len(summaries) == (agents * (rounds - 1) if agents > 1 else 0)
    role = lambda m, n: f"{'generator' if m == 1 else 'critic'}_{n}"
    for number, asked in enumerate(summaries):
        m, n = number // agents + 1, number % agents
        others = [role(m, other) for other in range(agents) if other != n]
        lines = [f"Solver {i}: {name} in round {m} on What is 0?={name}" for i, name in enumerate(others, start=1)]
        assert asked.speaker is None
        (message,) = asked.messages
        assert message == {"role": "user", "content": "\n".join(["What is 0?", *lines, "summarize"])}


def test_the_random_key_of_each_text_is_unique_and_depends_only_on_its_place():
    debate, sampler = make_debate(distinct, protocol_of(3, 3))
    debate.run(questions(4))
    keys = {
        (a.speaker, a.round, a.is_summary, a.messages[0]["content"], a.messages[-1]["content"]): a.key
        for a in sampler.asked
    }
    assert len(set(keys.values())) == len(keys) == len(sampler.asked)
    few, other = make_debate(distinct, protocol_of(3, 3))
    few.run(questions(4)[2:])
    again = {
        (a.speaker, a.round, a.is_summary, a.messages[0]["content"], a.messages[-1]["content"]): a.key
        for a in other.asked
    }
    assert again.items() <= keys.items()
    renamed, third = make_debate(distinct, protocol_of(3, 3), name="other")
    renamed.run(questions(1))
    assert not {a.key for a in third.asked} & set(keys.values())


@pytest.mark.parametrize(
    ("method", "speakers"),
    [
        ("base", ((None,),)),
        ("majority", ((None,) * 3,)),
        ("debate", ((None,) * 3,) * 2),
        ("multiagent_ft", (("generator_0", "generator_1", "generator_2"), ("critic_0", "critic_1", "critic_2"))),
    ],
)
def test_the_speakers_of_each_method(method, speakers):
    assert protocol_of(3, 2, method).speakers == speakers


def answers(table):
    """A script with the answers table[round][agent] for one question. Names of speakers end with the agent's number."""
    return lambda asked: "s" if asked.is_summary else f"={table[asked.round - 1][int(asked.speaker[-1])]}"


def test_which_answers_the_final_vote_is_over_and_that_all_votes_are_recorded():
    debate, _ = make_debate(answers([["1", "1", "2"], ["3", "2", "2"]]), protocol_of(3, 2))
    ((transcript,), _) = debate.run(questions(1, gold=lambda i: "2"))
    assert (transcript.votes, transcript.vote, transcript.correct) == (("1", "2"), "2", True)
    every = dataclasses.replace(protocol_of(3, 2), voted="all")
    ((transcript,), _) = make_debate(answers([["1", "1", "1"], ["3", "2", "2"]]), every)[0].run(questions(1))
    assert transcript.votes == ("1", "1")  # three answers of six
    ((transcript,), _) = make_debate(answers([["1", "1", "2"], ["3", "2", "2"]]), every)[0].run(questions(1))
    assert transcript.votes == ("1", "2")
    ((unlabelled,), _) = debate.run(questions(1, gold=lambda i: None))
    assert (unlabelled.vote, unlabelled.gold, unlabelled.correct) == ("2", None, None)


@pytest.mark.parametrize("shows", ["answers", "nothing"])
def test_debates_without_summaries(shows):
    protocol = dataclasses.replace(protocol_of(3, 2), shows=shows)
    debate, sampler = make_debate(distinct, protocol)
    ((transcript,), _) = debate.run(questions(1))
    assert len(sampler.asked) == debate.samples(1) == 6
    assert transcript.summaries == ()
    for n, agent in enumerate(transcript.agents):
        shown = agent.messages[2]["content"]
        others = [transcript.agents[o].messages[1]["content"] for o in range(3) if o != n]
        listed = "\n".join(f"Solver {i}: {text}" for i, text in enumerate(others, start=1))
        assert shown == (f"Other solvers say:\n{listed}\ncheck" if shows == "answers" else "again")


def test_a_debate_that_stops_at_agreement():
    """The agents agree on question 0 in round 1, on 1 in round 2, on 2 never: an unparsed answer is no agreement."""
    tables = {
        "What is 0?": [["a", "A", "a"]] * 3,
        "What is 1?": [["a", "b", "a"], ["b", "B", "b"], ["c", "c", "c"]],
        "What is 2?": [["a", "a", ""]] * 3,
    }
    script = lambda asked: answers(tables[asked.question])(asked)
    protocol = dataclasses.replace(protocol_of(3, 3), stops="agreement")
    debate, sampler = make_debate(script, protocol)
    transcripts, _ = debate.run(questions(3))
    assert [t.votes for t in transcripts] == [("a",), ("a", "b"), ("a", "a", "a")]
    assert [len(t.agents[0].messages) for t in transcripts] == [2, 4, 6]
    assert len(sampler.asked) == 3 + 9 + 15
    alone, _ = make_debate(script, protocol)
    assert [alone.run([question])[0][0] for question in questions(3)] == transcripts


def test_truncated_answers_vote_only_with_a_complete_box():
    """In a truncated text, a complete \\boxed{} is an answer, but the last number is not."""
    texts = {0: ("so far =7", "limit"), 1: (r"\boxed{8} and =8", "context"), 2: "=9"}
    script = lambda asked: "s" if asked.is_summary else texts[int(asked.speaker[-1])]
    debate, _ = make_debate(script, protocol_of(3, 1))
    ((transcript,), _) = debate.run(questions(1))
    assert [agent.answers for agent in transcript.agents] == [(None,), ("8",), ("9",)]
    assert [agent.turns[0].end for agent in transcript.agents] == ["limit", "context", "stop"]
    assert turn_counts([transcript]) == {"cut": 2, "unanswered": 0}


def test_an_agent_whose_prompt_fills_the_context_leaves_the_debate():
    """Agent 1's second prompt fills the context: its later turns are unanswered, and others are shown nothing of it."""
    script = lambda asked: ("", "unanswerable") if asked.speaker == "critic_1" else distinct(asked)
    debate, sampler = make_debate(script, protocol_of(3, 3))
    ((transcript,), _) = debate.run(questions(1))
    out, other = transcript.agents[1], transcript.agents[0]
    assert out.answers == ("generator_1", None, None)
    assert [turn.end for turn in out.turns] == ["stop", "unanswerable", "unanswerable"]
    assert len(out.messages) == 2
    assert other.answers == ("generator_0", "critic_0", "critic_0")
    assert transcript.summaries[1] == (transcript.summaries[1][0], None, transcript.summaries[1][2])
    assert "generator_1" not in transcript.summaries[1][0]
    assert transcript.summaries[1][0].endswith("of critic_2 in round 2 on What is 0?=critic_2")
    assert sum(asked.speaker == "critic_1" for asked in sampler.asked) == 1
    assert turn_counts([transcript]) == {"cut": 0, "unanswered": 2}


def test_an_agent_whose_summary_was_not_sampled_reconsiders():
    def script(asked):
        if asked.is_summary and "generator_0" not in asked.messages[0]["content"]:
            return "", "unanswerable"  # the summary for agent 0
        return distinct(asked)

    debate, _ = make_debate(script, protocol_of(3, 2))
    ((transcript,), _) = debate.run(questions(1))
    assert transcript.agents[0].messages[2]["content"] == "again"
    assert transcript.agents[1].messages[2]["content"].endswith("check")
    assert transcript.summaries[0][0] is None
    assert transcript.summary_turns[0][0].end == "unanswerable"
    assert turn_counts([transcript]) == {"cut": 0, "unanswered": 1}


def test_a_debate_that_all_agents_have_left():
    script = lambda asked: ("", "unanswerable") if asked.round == 2 else distinct(asked)
    debate, _ = make_debate(script, protocol_of(2, 3))
    ((transcript,), _) = debate.run(questions(1))
    assert (len(transcript.votes), transcript.vote, transcript.correct) == (2, None, False)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_that_compare_answers_changes_no_transcript(monkeypatch, threads):
    """Also if the comparisons for the first question take the longest."""
    monkeypatch.setattr(grader, "useful_threads", lambda: threads)
    main, used = threading.get_ident(), set()

    def equivalent(a, b):
        used.add(threading.get_ident())
        time.sleep(0.02 if "is 0?" in a else 0)
        return a.lower() == b.lower()

    script = lambda asked: f"{asked.speaker}={asked.question}{asked.speaker if asked.round == 1 else ''}"
    debate, sampler = make_debate(script, protocol_of(3, 2))
    other, other_sampler = make_debate(script, protocol_of(3, 2))
    debate = dataclasses.replace(debate, task=dataclasses.replace(debate.task, equivalent=equivalent))
    transcripts, usages = debate.run(questions(6))
    assert (used == {main}) if threads == 1 else (main not in used)
    expected, expected_usages = other.run(questions(6))
    assert transcripts == expected
    assert usages == expected_usages
    assert sampler.asked == other_sampler.asked
    assert [transcript.id for transcript in transcripts] == [f"q{number}" for number in range(6)]


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(grader, "useful_threads", lambda: 2)

    def fail(a, b):
        raise RuntimeError("no grading process")

    debate, _ = make_debate(distinct, protocol_of(2, 1))
    debate = dataclasses.replace(debate, task=dataclasses.replace(debate.task, equivalent=fail))
    with pytest.raises(RuntimeError, match="no grading process"):
        debate.run(questions(3))


def test_turns_record_prompt_and_new_tokens():
    debate, sampler = make_debate(distinct, protocol_of(2, 2))
    ((transcript,), (first, *_)) = debate.run(questions(1))
    turn = transcript.agents[1].turns[0]
    assert (turn.prompt_tokens, turn.new_tokens) == first.lengths[1]
    assert turn.prompt_tokens == len(json.dumps(sampler.asked[1].messages))


def test_a_transcript_is_rebuilt_from_its_json_line():
    script = lambda asked: ("", "unanswerable") if asked.speaker == "critic_1" else distinct(asked)
    debate, _ = make_debate(script, protocol_of(3, 2))
    ((transcript,), _) = debate.run(questions(1))
    line = transcript.to_json()
    assert "\n" not in line
    assert Transcript.from_dict(json.loads(line)) == transcript


def test_one_speaker_for_everyone():
    protocol = Protocol(speakers=everyone("one", 2, 3))
    assert (protocol.agents, protocol.rounds, protocol.samples) == (2, 3, 10)
    assert {protocol.speaker(m, n) for m in (1, 2, 3) for n in (0, 1)} == {"one"}


def test_the_speaker_writes_its_own_summary():
    """The one that answers in the coming round."""
    speakers = (("a", "b"), ("c", "d"))
    debate, sampler = make_debate(
        lambda asked: "summary" if asked.is_summary else "x=1", Protocol(speakers=speakers, summarizer="speaker")
    )
    debate.run(questions(1))
    assert [asked.speaker for asked in sampler.asked if asked.is_summary] == ["c", "d"]


def test_a_wrong_answer_is_tried_again_with_the_true_answer():
    """Question 0 is answered right at once; question 1 only with the hint."""
    rules = Protocol(speakers=(("a",),) * 2, shows="true answer", stops="correct")
    debate, sampler = make_debate(lambda asked: "x=0" if len(asked.messages) == 1 else "x=1", rules)
    transcripts, _ = debate.run(questions(2))
    assert [own.agents[0].answers for own in transcripts] == [("0",), ("0", "1")]
    assert [asked.messages[-1]["content"] for asked in sampler.asked if len(asked.messages) > 1] == [
        "Other solvers say:\nAnswers: 1\ncheck"
    ]
    assert [own.summaries for own in transcripts] == [(), ()]
