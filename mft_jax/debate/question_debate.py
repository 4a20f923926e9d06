"""The debate on one question as a state machine: it returns the prompts to sample next and is advanced by the texts.

It works on text only, without tokens or a model. The caller samples the prompts, batched with those of other debates,
and passes the sampled texts back.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mft_jax.debate.protocol import Protocol
from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn
from mft_jax.debate.vote import vote, voted_answers
from mft_jax.prompts import Message, assistant
from mft_jax.tasks import Question, Task


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """A text to sample: an answer of an agent, or the summary that the agent is shown before its next answer."""

    kind: Literal["round", "summary"]
    round: int  # from 1; for a summary, the round before which it is shown
    agent: int  # from 0
    speaker: str | None  # name of the adapter; None: the base model
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class SampledText:
    """The text sampled for a TextRequest, and how it ended. The text of an unanswerable request is empty."""

    text: str
    turn: Turn


class _Agent:
    """The state of one agent during the debate."""

    def __init__(self) -> None:
        self.chat: list[Message] = []
        self.shown: Message | None = None  # the user message that its next answer replies to
        self.answers: list[str | None] = []
        self.turns: list[Turn] = []

    @property
    def last_text(self) -> str | None:
        """The text of its answer in the last round; None if it gave none."""
        return self.chat[-1]["content"] if self.turns and self.turns[-1].end != "unanswerable" else None

    @property
    def has_left(self) -> bool:
        """Whether it has left the debate, because a prompt filled the context."""
        return bool(self.turns) and self.turns[-1].end == "unanswerable"


State = tuple[list[_Agent], list[list[str | None]], list[list[Turn | None]], list[str | None], list[TextRequest]]


class QuestionDebate:
    """The debate on one question.

    Sample the texts of `pending()` and pass them to `advance` until `pending()` is empty. Then `transcript()` is
    final.
    """

    def __init__(self, question: Question, task: Task, protocol: Protocol, seed: int):
        self.question, self.task, self.protocol, self.seed = question, task, protocol, seed
        self._agents = [_Agent() for _ in range(protocol.agents)]
        self._summaries: list[list[str | None]] = []  # [round - 2][agent]
        self._summary_turns: list[list[Turn | None]] = []
        self._votes: list[str | None] = []
        self._cooperate = protocol.spirit == "cooperate"
        for n, agent in enumerate(self._agents, start=1):
            agent.shown = task.prompts.first(question.text, f"Agent {n}" if protocol.named else None)
        self._pending = self._request_answers(1)

    def pending(self) -> list[TextRequest]:
        """The texts to sample next. The debate continues when it has all of them. Empty: the debate is over."""
        return list(self._pending)

    def advance(self, sampled: Sequence[SampledText]) -> None:
        """Continues the debate with the sampled texts of `pending()`, in the same order."""
        requested, self._pending = self._pending, []
        if requested[0].kind == "summary":
            self._record_summaries(requested, sampled)
            self._pending = self._request_answers(requested[0].round)
            return
        self._record_answers(requested, sampled)
        if not self._is_over():
            self._pending = self._start_round(len(self._votes) + 1)

    @property
    def state(self) -> State:
        """What `advance` changes. On several hosts, host 0 advances the debate and the others take over its state."""
        return self._agents, self._summaries, self._summary_turns, self._votes, self._pending

    @state.setter
    def state(self, state: State) -> None:
        self._agents, self._summaries, self._summary_turns, self._votes, self._pending = state

    def transcript(self) -> Transcript:
        """The transcript up to the last finished round. Needs at least one finished round."""
        gold, final = self.question.gold, self._votes[-1]
        agrees = lambda: final is not None and gold is not None and self.task.equivalent(final, gold)
        return Transcript(
            id=self.question.id,
            question=self.question.text,
            gold=gold,
            agents=tuple(
                AgentTranscript(messages=tuple(a.chat), answers=tuple(a.answers), turns=tuple(a.turns))
                for a in self._agents
            ),
            summaries=tuple(map(tuple, self._summaries)),
            summary_turns=tuple(map(tuple, self._summary_turns)),
            votes=tuple(self._votes),
            vote=final,
            correct=None if gold is None else agrees(),
        )

    def _request_answers(self, round: int) -> list[TextRequest]:
        """Requests the answers of a round from every agent that is still in the debate."""
        return [
            TextRequest("round", round, n, self.protocol.speaker(round, n), (*agent.chat, agent.shown))
            for n, agent in enumerate(self._agents)
            if not agent.has_left and agent.shown is not None
        ]

    def _start_round(self, round: int) -> list[TextRequest]:
        """Starts `round` (2..M): requests its summaries, or directly its answers if there is nothing to summarize."""
        others = {n: self._other_answers(n) for n, agent in enumerate(self._agents) if not agent.has_left}
        prompts, shows = self.task.prompts, self.protocol.shows
        for n, texts in others.items():
            direct = texts and shows == "answers"
            shown = prompts.later_direct(texts, cooperate=self._cooperate) if direct else prompts.reconsider()
            if shows == "true answer" and self.question.gold is not None:
                shown = prompts.hint(self.question.gold)
            self._agents[n].shown = shown
        if shows != "summary" or not any(others.values()):
            return self._request_answers(round)
        self._summaries.append([None] * len(self._agents))
        self._summary_turns.append([None] * len(self._agents))
        requests = []
        for n, texts in others.items():
            if texts:
                writer = None if self.protocol.summarizer == "base" else self.protocol.speaker(round, n)
                asked = prompts.summary(self.question.text, texts)
                requests.append(TextRequest("summary", round, n, writer, (asked,)))
        return requests

    def _other_answers(self, agent: int) -> list[str]:
        """The answers of the other agents in the last round, in agent order, without the agent's own answer."""
        texts = [other.last_text for n, other in enumerate(self._agents) if n != agent]
        return [text for text in texts if text is not None]

    def _record_summaries(self, requested: Sequence[TextRequest], sampled: Sequence[SampledText]) -> None:
        for request, summary in zip(requested, sampled, strict=True):
            self._summary_turns[-1][request.agent] = summary.turn
            if summary.turn.end != "unanswerable":  # otherwise the agent keeps the prompt to reconsider
                self._summaries[-1][request.agent] = summary.text
                shown = self.task.prompts.later(summary.text, cooperate=self._cooperate)
                self._agents[request.agent].shown = shown

    def _record_answers(self, requested: Sequence[TextRequest], sampled: Sequence[SampledText]) -> None:
        by_agent = {request.agent: answer for request, answer in zip(requested, sampled, strict=True)}
        for n, agent in enumerate(self._agents):
            answer = by_agent.get(n)
            agent.turns.append(answer.turn if answer else Turn(end="unanswerable", prompt_tokens=0, new_tokens=0))
            if answer is None or answer.turn.end == "unanswerable":
                agent.answers.append(None)
                continue
            assert agent.shown is not None, "an agent that answers has been shown a message"
            agent.chat += [agent.shown, assistant(answer.text)]
            agent.answers.append(self.task.answer(answer.text, answer.turn.complete))
        answers = voted_answers([agent.answers for agent in self._agents], self.protocol.voted)
        round = len(self._votes) + 1
        where = {"seed": self.seed, "question_id": self.question.id, "round": round, "ties": self.protocol.ties}
        self._votes.append(vote(answers, self.task.equivalent, **where))

    def _is_over(self) -> bool:
        if len(self._votes) == self.protocol.rounds or all(agent.has_left for agent in self._agents):
            return True
        latest, stops = [agent.answers[-1] for agent in self._agents], self.protocol.stops
        wanted = {"agreement": latest[0], "correct": self.question.gold, "never": None}[stops]
        return wanted is not None and all(a is not None and self.task.equivalent(wanted, a) for a in latest)
