"""The debates as data of the page: an index of all, which it reads at once, and texts in compressed chunks.

The index has a table of questions and, for each stage, one row per debate: [index of the question, bits of the flags,
marks of each agent, vote, marks of the votes, share of the final answers that agree with the vote, tokens]. The texts
of a debate are an object {"agents": [[turn, ...], ...], "votes": [answer, ...]}; see `_turn` for a turn. A person who
opens a debate waits for one chunk only.
"""

import base64
import dataclasses
import itertools
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from mft_jax.config import ExperimentConfig
from mft_jax.debate import AgentTranscript, Transcript, Turn
from mft_jax.metrics.diversity import Equivalent
from mft_jax.report.page.judge import FLAGS, Verdict, count_transitions, count_votes, judge
from mft_jax.report.page.sources import Lesson, Say, Source, each_transcript, read_lessons
from mft_jax.report.page.work import MessageCost
from mft_jax.runs.store import DamagedFile

CHUNK_DEBATES = 50

Json = dict[str, Any]


@dataclasses.dataclass
class Debates:
    """Collects the debates of all runs of a report."""

    questions: list[Json] = dataclasses.field(default_factory=list)  # {"id", "text", "gold"}
    chunks: list[bytes] = dataclasses.field(default_factory=list)  # deflated JSON, a list of debates each
    _known: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def add(
        self, source: Source, config: ExperimentConfig, equivalent: Equivalent, cost: MessageCost, say: Say
    ) -> Json | None:
        """Adds the debates of a stage. Returns its entry in the page, or None if there are no debates.

        `say` reports a stage that cannot be read, of which nothing is added. Only a chunk of debates is parsed at a time.
        """
        lessons = read_lessons(source, config, say)
        read: list[_Debate] = []
        chunks = []
        try:
            transcripts = each_transcript(source)
            while part := list(itertools.islice(transcripts, CHUNK_DEBATES)):
                verdicts = [judge(transcript, equivalent) for transcript in part]
                bodies = [
                    _body(transcript, verdict, lessons.get(transcript.id, ()), source, cost)
                    for transcript, verdict in zip(part, verdicts, strict=True)
                ]
                chunks.append(deflate(bodies))
                read += map(_Debate.of, part, verdicts, bodies)
        except DamagedFile as error:
            say(str(error))
            return None
        if not read:
            return None
        first = len(self.chunks)
        self.chunks += chunks
        verdicts = [debate.verdict for debate in read]
        return {
            "stage": source.name,
            "method": source.method,
            "iteration": source.iteration,
            "split": source.split,
            "task": source.task,
            "speakers": source.speakers,
            "first_chunk": first,
            "chunk_debates": CHUNK_DEBATES,
            "rows": [[self._index(debate.question), *debate.row] for debate in read],
            "transitions": count_transitions(verdicts),
            "votes": count_votes(verdicts),
        }

    def _index(self, question: tuple[str, str, str | None]) -> int:
        """The index of a question. The same id with another text, of another run, is another question."""
        id, text, gold = question
        if (id, text) not in self._known:
            self._known[id, text] = len(self.questions)
            self.questions.append({"id": id, "text": text, "gold": gold})
        return self._known[id, text]


class _Debate(NamedTuple):
    """What the index of the page says of a debate."""

    question: tuple[str, str, str | None]  # id, text, reference answer
    verdict: Verdict
    row: list[Any]  # see above, without the index of the question

    @classmethod
    def of(cls, transcript: Transcript, verdict: Verdict, body: Json) -> "_Debate":
        turns = [turn for own in body["agents"] for turn in own]
        flags = verdict.flags | ({"trained"} if any(turn.get("for") for turn in turns) else set())
        sampled = [part for turn in turns for part in (turn, turn.get("summary")) if part]
        final = [own[-1] for own in verdict.agrees]
        row = [
            sum(1 << bit for bit, name in enumerate(FLAGS) if name in flags),
            list(verdict.marks),
            transcript.vote,
            verdict.votes,
            round(sum(final) / len(final), 3),
            sum(part["in"] + part["out"] for part in sampled),
        ]
        return cls((transcript.id, transcript.question, transcript.gold), verdict, row)


def deflate(value: Any) -> bytes:
    """JSON, compressed in the format "deflate" of the browsers' DecompressionStream."""
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), 9)


def to_text(data: bytes) -> str:
    """Base64, which is plain text in HTML and in scripts whatever the data are."""
    return base64.b64encode(data).decode()


def _body(
    transcript: Transcript, verdict: Verdict, lessons: Sequence[Lesson], source: Source, cost: MessageCost
) -> Json:
    agents = []
    for n, agent in enumerate(transcript.agents):
        turns = []
        for round, turn in enumerate(agent.turns, start=1):
            speaker = source.speakers[round - 1][n] if len(source.speakers) >= round else None
            summary, summary_turn = _summary(transcript, round, n)
            own = _turn(agent, round, turn, summary, summary_turn)
            own["flops"] = cost.flops(turn, adapted=speaker is not None)
            if summary_turn is not None:
                by_speaker = source.summarizer == "speaker" and speaker is not None
                own["summary"]["flops"] = cost.flops(summary_turn, adapted=by_speaker)
            own |= {"mark": verdict.marks[n][round - 1], "agrees": verdict.agrees[n][round - 1]}
            learners = _learners(agent, n, round, lessons)
            turns.append(own | ({"for": learners} if learners else {}))
        agents.append(turns)
    return {"agents": agents, "votes": list(transcript.votes)}


def _turn(agent: AgentTranscript, round: int, turn: Turn, summary: str | None, summary_turn: Turn | None) -> Json:
    """One answer of an agent: what it was shown (before, summary and after it), what it said, and how it ended."""
    has_text = turn.end != "unanswerable"
    shown = agent.messages[2 * round - 2]["content"] if has_text else ""
    before, found, after = shown.partition(summary) if summary else (shown, "", "")
    own: Json = {
        "shown": [before, found, after] if found else [shown],
        "said": agent.messages[2 * round - 1]["content"] if has_text else None,
        "answer": agent.answers[round - 1],
    }
    if summary_turn is not None:
        own["summary"] = _size(summary_turn)
    return own | _size(turn)


def _size(turn: Turn) -> Json:
    return {"end": turn.end, "in": turn.prompt_tokens, "out": turn.new_tokens}


def _summary(transcript: Transcript, round: int, agent: int) -> tuple[str | None, Turn | None]:
    """The summary that the agent was shown before the round, and how its sampling ended."""
    if round < 2 or len(transcript.summaries) < round - 1:
        return None, None
    return transcript.summaries[round - 2][agent], transcript.summary_turns[round - 2][agent]


def _learners(agent: AgentTranscript, n: int, round: int, lessons: Sequence[Lesson]) -> list[list[str]]:
    """[adapter, kind] of every training example of which the agent's answer of this round is learned."""
    messages = tuple((message["role"], message["content"]) for message in agent.messages)
    return [
        [lesson.adapter, lesson.kind]
        for lesson in lessons
        if lesson.agent in (None, n)
        and round in lesson.rounds
        and len(messages) >= 2 * round <= len(lesson.messages)
        and lesson.messages == messages[: len(lesson.messages)]
    ]
