"""The debate on one question as a state machine: what is to be sampled next, and what follows from the answers.

It knows no tokens and no model. Whoever holds it samples the prompts it asks for, in whatever company of other debates,
and hands back the texts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mft_jax.debate.protocol import Protocol
from mft_jax.debate.transcript import AgentTranscript, Transcript, Turn
from mft_jax.debate.vote import vote
from mft_jax.prompts import Message, assistant
from mft_jax.tasks import Question, Task


@dataclasses.dataclass(frozen=True)
class Ask:
    """A text to sample: an answer of an agent, or the summary that it is to be shown."""

    kind: Literal["round", "summary"]
    round: int  # from 1; a summary counts to the round before which it is shown
    agent: int
    speaker: str | None  # None: the base model
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Said:
    """The text that was sampled for an Ask; "" where it is unanswerable."""

    text: str
    turn: Turn


class _Agent:
    """One agent's side, as it grows."""

    def __init__(self) -> None:
        self.chat: list[Message] = []
        self.shown: Message | None = None  # the user's turn that its next answer replies to
        self.answers: list[str | None] = []
        self.turns: list[Turn] = []

    @property
    def last_text(self) -> str | None:
        """Its answer of the last round; None if it gave none."""
        return self.chat[-1]["content"] if self.turns and self.turns[-1].end != "unanswerable" else None

    @property
    def is_out(self) -> bool:
        return bool(self.turns) and self.turns[-1].end == "unanswerable"


class QuestionDebate:
    """`asks()` is what to sample now; `take(said)` is how it goes on; when `asks()` is empty, `transcript()` is final."""

    def __init__(self, question: Question, task: Task, protocol: Protocol, seed: int):
        self.question, self.task, self.protocol, self.seed = question, task, protocol, seed
        self._agents = [_Agent() for _ in range(protocol.agents)]
        self._summaries: list[list[str | None]] = []  # [round - 2][agent]
        self._summary_turns: list[list[Turn | None]] = []
        self._votes: list[str | None] = []
        for agent in self._agents:
            agent.shown = task.prompts.first(question.text)
        self._asks = self._answers_of(1)

    def asks(self) -> list[Ask]:
        """The texts that must all be there before the debate can go on."""
        return list(self._asks)

    def take(self, said: Sequence[Said]) -> None:
        """Goes on with one text for each of `asks()`, in their order."""
        asked, self._asks = self._asks, []
        if asked[0].kind == "summary":
            self._take_summaries(asked, said)
            self._asks = self._answers_of(asked[0].round)
            return
        self._take_answers(asked, said)
        if not self._is_over():
            self._asks = self._next_round(len(self._votes) + 1)

    def transcript(self) -> Transcript:
        """What the debate has come to."""
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

    def _answers_of(self, round: int) -> list[Ask]:
        """The answers of a round, of every agent that still takes part."""
        return [
            Ask("round", round, n, self.protocol.speaker(round, n), (*agent.chat, agent.shown))
            for n, agent in enumerate(self._agents)
            if not agent.is_out and agent.shown is not None
        ]

    def _next_round(self, round: int) -> list[Ask]:
        """What comes after a round of answers: the summaries, or the next answers where nothing is summarized."""
        others = {n: self._others(n) for n, agent in enumerate(self._agents) if not agent.is_out}
        prompts, shows = self.task.prompts, self.protocol.shows
        for n, texts in others.items():
            shown = prompts.later_direct(texts) if texts and shows == "answers" else prompts.reconsider()
            self._agents[n].shown = shown
        if shows != "summary" or not any(others.values()):
            return self._answers_of(round)
        self._summaries.append([None] * len(self._agents))
        self._summary_turns.append([None] * len(self._agents))
        asks = []
        for n, texts in others.items():
            if texts:
                asks.append(Ask("summary", round, n, None, (prompts.summary(self.question.text, texts),)))
        return asks

    def _others(self, agent: int) -> list[str]:
        """What the other agents answered in the last round, in their order; never the agent's own answer."""
        texts = [other.last_text for n, other in enumerate(self._agents) if n != agent]
        return [text for text in texts if text is not None]

    def _take_summaries(self, asked: Sequence[Ask], said: Sequence[Said]) -> None:
        for ask, summary in zip(asked, said, strict=True):
            self._summary_turns[-1][ask.agent] = summary.turn
            if summary.turn.end != "unanswerable":  # else the agent, with nothing to read, reconsiders
                self._summaries[-1][ask.agent] = summary.text
                self._agents[ask.agent].shown = self.task.prompts.later(summary.text)

    def _take_answers(self, asked: Sequence[Ask], said: Sequence[Said]) -> None:
        spoken = {ask.agent: answer for ask, answer in zip(asked, said, strict=True)}
        for n, agent in enumerate(self._agents):
            answer = spoken.get(n)
            agent.turns.append(answer.turn if answer else Turn(end="unanswerable", prompt_tokens=0, new_tokens=0))
            if answer is None or answer.turn.end == "unanswerable":
                agent.answers.append(None)
                continue
            assert agent.shown is not None, "an agent answers what it is shown"
            agent.chat += [agent.shown, assistant(answer.text)]
            agent.answers.append(self.task.answer(answer.text, answer.turn.complete))
        latest = [agent.answers[-1] for agent in self._agents]
        round = len(self._votes) + 1
        self._votes.append(
            vote(latest, self.task.equivalent, seed=self.seed, question_id=self.question.id, round=round)
        )

    def _is_over(self) -> bool:
        if len(self._votes) == self.protocol.rounds or all(agent.is_out for agent in self._agents):
            return True
        latest = [agent.answers[-1] for agent in self._agents]
        first = latest[0]
        agreed = first is not None and all(a is not None and self.task.equivalent(first, a) for a in latest)
        return agreed and self.protocol.stops == "agreement"
