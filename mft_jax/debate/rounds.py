"""The debate of the paper (section 1 of the method): first answers, summaries by the base model, later answers, the vote.

Every stage of a chunk of questions is one call of the sampler, for all agents and questions at once.
"""

import dataclasses
from collections.abc import Callable, Sequence

from mft_jax.debate.transcript import AgentTranscript, Transcript
from mft_jax.debate.vote import vote
from mft_jax.models.chat import Chat
from mft_jax.models.lora import Adapter
from mft_jax.prompts import Message, assistant
from mft_jax.sampling import Request, Sampler, Usage, row_key
from mft_jax.tasks import Question, Task

Progress = Callable[[int, int], None]  # (finished rows, new tokens) since the last call


@dataclasses.dataclass(frozen=True)
class Society:
    """Who speaks: G answers round 1, C all later rounds; None is the untuned base model. Leaves [N, ...]."""

    generators: Adapter | None = None
    critics: Adapter | None = None


@dataclasses.dataclass(frozen=True)
class Debate:
    """Everything a debate needs but its questions. Base is one agent and one round, majority N agents and one round."""

    sampler: Sampler
    chat: Chat
    task: Task
    society: Society
    agents: int  # N
    rounds: int  # M
    seed: int
    name: str  # distinguishes the random draws of debates on the same questions, e.g. "debate/eval/0"

    def rows(self, questions: int) -> int:
        """How many sequences are sampled for that many questions: answers of M rounds, and summaries between them."""
        summaries = self.agents * (self.rounds - 1) if self.agents > 1 else 0
        return questions * (self.agents * self.rounds + summaries)

    def run(
        self, questions: Sequence[Question], on_progress: Progress | None = None
    ) -> tuple[list[Transcript], list[Usage]]:
        """One debate per question, in their order, and what each call of the sampler cost."""
        prompts = self.task.prompts
        usages: list[Usage] = []
        # chats[i][n]: agent n's messages about question i; all agents keep their own history
        chats: list[list[list[Message]]] = [[[prompts.first(q.text)] for _ in range(self.agents)] for q in questions]
        summaries: list[list[list[str]]] = [[] for _ in questions]  # [question][round - 2][agent]
        for round_index in range(1, self.rounds + 1):
            if round_index > 1:
                self._show_others(questions, chats, summaries, round_index, usages, on_progress)
            adapters = self.society.generators if round_index == 1 else self.society.critics
            texts = self._sample(questions, chats, f"round {round_index}", adapters, usages, on_progress)
            for question_chats, answers in zip(chats, texts, strict=True):
                for chat, answer in zip(question_chats, answers, strict=True):
                    chat.append(assistant(answer))
        return [self._transcript(*row) for row in zip(questions, chats, summaries, strict=True)], usages

    def _show_others(self, questions, chats, summaries, round_index, usages, on_progress) -> None:
        """Adds each agent's next user turn: a summary, by the base model, of the OTHER agents' last answers."""
        prompts = self.task.prompts
        if self.agents == 1:
            for (chat,) in chats:
                chat.append(prompts.reconsider())
            return
        asked = [
            [[prompts.summary(question.text, _others(question_chats, n))] for n in range(self.agents)]
            for question, question_chats in zip(questions, chats, strict=True)
        ]
        texts = self._sample(questions, asked, f"summary {round_index}", None, usages, on_progress)
        for question_chats, question_summaries, shown in zip(chats, summaries, texts, strict=True):
            question_summaries.append(shown)
            for chat, text in zip(question_chats, shown, strict=True):
                chat.append(prompts.later(text))

    def _sample(self, questions, dialogues, stage, adapters, usages, on_progress) -> list[list[str]]:
        """The next turn of every dialogue [question][agent], as text."""
        requests = [
            Request(agent, self.chat.prompt(dialogue), row_key(self.seed, self.name, stage, question.id, agent))
            for question, row in zip(questions, dialogues, strict=True)
            for agent, dialogue in enumerate(row)
        ]
        completions, usage = self.sampler.sample(requests, adapters, on_progress=on_progress)
        usages.append(usage)
        texts = [self.chat.text(completion.ids) for completion in completions]
        return [texts[i : i + self.agents] for i in range(0, len(texts), self.agents)]

    def _transcript(self, question: Question, chats: list[list[Message]], summaries: list[list[str]]) -> Transcript:
        spoken = [[message["content"] for message in chat if message["role"] == "assistant"] for chat in chats]
        answers = [tuple(self.task.parse(text) for text in texts) for texts in spoken]
        votes = tuple(
            vote(
                [agent[m] for agent in answers],
                self.task.equivalent,
                seed=self.seed,
                question_id=question.id,
                round=m + 1,
            )
            for m in range(self.rounds)
        )
        correct = votes[-1] is not None and question.gold is not None and self.task.equivalent(votes[-1], question.gold)
        return Transcript(
            id=question.id,
            question=question.text,
            gold=question.gold,
            agents=tuple(
                AgentTranscript(messages=tuple(chat), answers=parsed)
                for chat, parsed in zip(chats, answers, strict=True)
            ),
            summaries=tuple(map(tuple, summaries)),
            votes=votes,
            vote=votes[-1],
            correct=correct,
        )


def _others(chats: list[list[Message]], agent: int) -> list[str]:
    """What the other agents said last, in their order."""
    return [chat[-1]["content"] for n, chat in enumerate(chats) if n != agent]
