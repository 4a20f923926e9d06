"""Debates without a model, in milliseconds: a scripted sampler answers, and prompts are readable text."""

import dataclasses
import json

from mft_jax.debate import Debate
from mft_jax.models.society import Society
from mft_jax.prompts import Prompts
from mft_jax.sampling import Completion, Usage
from mft_jax.tasks import Question, Task

PROMPTS = Prompts(solve="solve", check="check", join="join", again="again", summarize="summarize")


@dataclasses.dataclass(frozen=True)
class RecordedRequest:
    """One request to the scripted sampler."""

    speaker: str | None
    messages: tuple[dict, ...]
    key: bytes

    @property
    def is_summary(self):
        return self.messages[-1]["content"].endswith("summarize")

    @property
    def round(self):
        return (len(self.messages) + 1) // 2

    @property
    def question(self):
        return self.messages[0]["content"].split("\n")[0]


class ScriptedChat:
    """Encodes a dialogue as the bytes of its JSON, so that a script sees exactly what an agent is shown."""

    def prompts(self, dialogues):
        return [list(json.dumps(messages).encode()) for messages in dialogues]

    def text(self, ids):
        return bytes(ids).decode(errors="replace")  # a part of a text may end within a character


class ScriptedSampler:
    """Completes each prompt with `script(asked)`, a text or a (text, reason). Records all requests."""

    def __init__(self, script):
        self.script, self.asked = script, []

    def sample(self, requests, society=None, *, on_progress=None, on_tokens=None):
        completions = []
        for request in requests:
            asked = RecordedRequest(request.speaker, tuple(json.loads(bytes(request.prompt))), request.key.tobytes())
            self.asked.append(asked)
            said = self.script(asked)
            text, reason = (said, "stop") if isinstance(said, str) else said
            ids = tuple(text.encode())
            for start in range(0, len(ids) if on_tokens else 0, 7):
                on_tokens(len(completions), ids[start : start + 7])
            completions.append(Completion(ids, reason, len(ids) + (reason == "stop")))
        lengths = tuple((len(r.prompt), c.new_tokens) for r, c in zip(requests, completions, strict=True))
        if on_progress:
            on_progress(len(requests), sum(new for _, new in lengths))
        return completions, [Usage(True, lengths, 0.0)]


def questions(count, gold=lambda i: str(i)):
    return tuple(Question(f"q{i}", f"What is {i}?", gold(i)) for i in range(count))


def task(train=(), evaluation=()):
    """A task whose answers follow the last "=". Answers that differ in case only are equivalent."""
    parse = lambda text: text.rpartition("=")[2] or None if "=" in text else None
    return Task(
        "scripted", train, evaluation, parse=parse, equivalent=lambda a, b: a.lower() == b.lower(), prompts=PROMPTS
    )


def make_debate(script, protocol, seed=0, name="test"):
    sampler = ScriptedSampler(script)
    debate = Debate(
        sampler=sampler, chat=ScriptedChat(), task=task(), protocol=protocol, society=Society(), seed=seed, name=name
    )
    return debate, sampler
