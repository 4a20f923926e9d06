"""Debates on many questions at once: whatever all of them ask for next is one call of the sampler."""

import dataclasses
from collections.abc import Sequence

from mft_jax.debate.protocol import Protocol
from mft_jax.debate.question_debate import QuestionDebate, Said
from mft_jax.debate.transcript import Transcript, Turn
from mft_jax.models.chat import Chat
from mft_jax.models.society import Society
from mft_jax.sampling import Progress, Request, Sampling, Usage
from mft_jax.seeds import row_key
from mft_jax.tasks import Question, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Debate:
    """Everything a debate needs but its questions (section 1 of the method, items 1 and 2)."""

    sampler: Sampling
    chat: Chat
    task: Task
    protocol: Protocol
    society: Society
    seed: int
    name: str
    """Distinguishes the random draws of debates on the same questions, such as "multiagent_ft/train/1"."""

    def samples(self, questions: int) -> int:
        """How many texts are sampled for that many questions, at most."""
        return questions * self.protocol.samples

    def run(
        self, questions: Sequence[Question], on_progress: Progress | None = None
    ) -> tuple[list[Transcript], list[Usage]]:
        """One debate for each question, in their order, and what sampling cost."""
        debates = [QuestionDebate(question, self.task, self.protocol, self.seed) for question in questions]
        usages: list[Usage] = []
        while waiting := [debate for debate in debates if debate.asks()]:
            usages += self._advance(waiting, on_progress)
        return [debate.transcript() for debate in debates], usages

    def _advance(self, debates: Sequence[QuestionDebate], on_progress: Progress | None) -> list[Usage]:
        """Samples what all the debates ask for, and hands it to them."""
        asks = [debate.asks() for debate in debates]
        requests = [
            Request(
                ask.speaker,
                self.chat.prompt(ask.messages),
                row_key(self.seed, self.name, f"{ask.kind} {ask.round}", debate.question.id, ask.agent),
            )
            for debate, own in zip(debates, asks, strict=True)
            for ask in own
        ]
        completions, usages = self.sampler.sample(requests, self.society, on_progress=on_progress)
        said = iter(
            Said(self.chat.text(completion.ids), Turn.of(len(request.prompt), completion))
            for request, completion in zip(requests, completions, strict=True)
        )
        for debate, own in zip(debates, asks, strict=True):
            debate.take([next(said) for _ in own])
        return usages
