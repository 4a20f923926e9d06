"""Runs the debates on many questions together: the next texts of all debates are sampled in one call of the sampler."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mft_jax.debate.protocol import Protocol
from mft_jax.debate.question_debate import QuestionDebate, SampledText, State
from mft_jax.debate.transcript import Transcript, Turn
from mft_jax.debate.watcher import PartialTexts, Watcher
from mft_jax.models.chat import Chat
from mft_jax.models.society import Society
from mft_jax.parallel.hosts import decide
from mft_jax.sampling import Progress, Request, Sampling, Usage
from mft_jax.seeds import row_key
from mft_jax.tasks import Question, Task, grader

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Debate:
    """Everything that a debate needs except the questions.

    It implements the debate and the majority vote of Algorithm 1 in Subramaniam et al. 2025 (arXiv 2501.05707).
    """

    sampler: Sampling
    chat: Chat
    task: Task
    protocol: Protocol
    society: Society
    seed: int
    name: str
    """Part of every random key: "train/1" for the training debates of iteration 1, "eval" for every evaluation.

    The method is not part of it. Methods with the same speakers therefore give the same texts, which need to be sampled
    only once, and methods that are compared on the same questions share their random numbers, which makes the
    comparison more precise (common random numbers).
    """

    def samples(self, questions: int) -> int:
        """The maximum number of texts that are sampled for this number of questions."""
        return questions * self.protocol.samples

    def run(
        self,
        questions: Sequence[Question],
        on_progress: Progress | None = None,
        watcher: Watcher | None = None,
        on_usages: Callable[[Sequence[Usage]], None] | None = None,
    ) -> tuple[list[Transcript], list[Usage]]:
        """Runs one debate per question. Returns the transcripts in the order of the questions, and the sampling cost.

        `watcher` is told every text as it is sampled, and `on_usages` the cost of each call of the sampler. Raises
        NonFiniteLogits if the logits of a speaker are NaN or infinite.
        """
        debates = [QuestionDebate(question, self.task, self.protocol, self.seed) for question in questions]
        usages: list[Usage] = []
        while waiting := [debate for debate in debates if debate.pending()]:
            spent = self._sample_pending(waiting, on_progress, watcher)
            usages += spent
            if on_usages is not None:
                on_usages(spent)
        return decide(lambda: _map_in_threads(QuestionDebate.transcript, debates)), usages

    def _sample_pending(
        self, debates: Sequence[QuestionDebate], on_progress: Progress | None, watcher: Watcher | None
    ) -> list[Usage]:
        """Samples the next texts of all debates in one call, and advances each debate by its texts."""
        pending = [debate.pending() for debate in debates]
        asked = [(debate, text) for debate, own in zip(debates, pending, strict=True) for text in own]
        prompts = self.chat.prompts([text.messages for _, text in asked])
        requests = [
            Request(
                text.speaker,
                prompt,
                row_key(self.seed, self.name, f"{text.kind} {text.round}", debate.question.id, text.agent),
            )
            for (debate, text), prompt in zip(asked, prompts, strict=True)
        ]
        partial = None if watcher is None else PartialTexts(watcher, asked, self.chat.text)
        completions, usages = self.sampler.sample(
            requests, self.society, on_progress=on_progress, on_tokens=None if partial is None else partial.add
        )
        sampled = iter(
            SampledText(self.chat.text(completion.ids), Turn.of(len(request.prompt), completion))
            for request, completion in zip(requests, completions, strict=True)
        )
        texts = [[next(sampled) for _ in own] for own in pending]
        states = decide(lambda: _map_in_threads(_advance, debates, texts))  # it grades answers
        for debate, state in zip(debates, states, strict=True):
            debate.state = state
        if watcher is not None:
            for debate, own, said in zip(debates, pending, texts, strict=True):
                watcher.on_step(debate, own, [one.text for one in said])
        return usages


def _advance(debate: QuestionDebate, texts: Sequence[SampledText]) -> State:
    debate.advance(texts)
    return debate.state


def _map_in_threads(function: Callable[..., T], *arguments: Iterable[object]) -> list[T]:
    """Applies a function that compares answers to each debate, like `map`, and returns the results in order.

    A thread that compares formulas waits for a grading process, so several threads keep several processes busy.
    """
    threads = grader.useful_threads()
    if threads == 1:
        return list(map(function, *arguments))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, *arguments))
