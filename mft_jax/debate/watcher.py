"""The interface of an object that follows debates while they are sampled, such as a live view."""

from collections.abc import Callable, Sequence
from typing import Protocol

from mft_jax.debate.question_debate import QuestionDebate, TextRequest


class Watcher(Protocol):
    """An object that is told about debates in progress. The debates do not depend on it."""

    def on_text(self, debate: QuestionDebate, request: TextRequest, text: str) -> None:
        """`text` is what has been sampled for a request of the debate so far; "" when its sampling starts."""

    def on_step(self, debate: QuestionDebate, requests: Sequence[TextRequest], texts: Sequence[str]) -> None:
        """The debate has been advanced by the texts of these requests: the answers of a round, or its summaries."""


class PartialTexts:
    """Collects the new tokens of requests, and tells a watcher the text of a request whenever it has grown."""

    def __init__(
        self,
        watcher: Watcher,
        requests: Sequence[tuple[QuestionDebate, TextRequest]],
        decode: Callable[[Sequence[int]], str],
    ):
        self.watcher, self.requests, self.decode = watcher, requests, decode
        self.ids: list[list[int]] = [[] for _ in requests]
        for debate, request in requests:
            watcher.on_text(debate, request, "")

    def add(self, index: int, ids: Sequence[int]) -> None:
        """Adds new token ids of the request with this index."""
        self.ids[index] += ids
        # A character of several tokens is decoded as U+FFFD until all of them are there.
        self.watcher.on_text(*self.requests[index], self.decode(self.ids[index]).rstrip("\N{REPLACEMENT CHARACTER}"))
