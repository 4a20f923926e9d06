"""Chat templates, rendered in a process of their own (see mft_jax.worker).

A template is a program that comes with a checkpoint. Its sandbox keeps it from doing anything but making text, but not
from looping for ever or filling the memory.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.prompts import Message
from mft_jax.worker import EndedError, LateError, Worker

CPU_SECONDS = 2.0  # for one rendering; usual ones take a millisecond
WALL_SECONDS = 60.0  # for one rendering, in case the process sleeps for ever
LONGEST = 10_000_000  # characters of a rendering; more than the longest context of any model holds
CHARACTERS_TOGETHER = 1_000_000  # of the dialogues in a request, the last of which may exceed it

Dialogue = tuple[Sequence[Message], bool]  # and whether it is opened: it then ends with the generation prompt

_WORKER = Worker(pathlib.Path(__file__).with_name("template_worker.py"))
start = _WORKER.start  # without waiting: its imports take most of a second


def render(template: str, messages: Sequence[Message], *, opened: bool, variables: Mapping[str, Any]) -> str:
    """The text of one dialogue: see `render_all`."""
    return render_all(template, [(messages, opened)], variables=variables)[0]


def render_all(template: str, dialogues: Sequence[Dialogue], *, variables: Mapping[str, Any]) -> list[str]:
    """The texts of dialogues, as transformers renders them. An opened one ends with the generation prompt.

    A template that asks for today's date always gets the same one. Raises UserError when the template fails, when a
    dialogue needs more than CPU_SECONDS, WALL_SECONDS or 1 GB of memory, and when it makes more than LONGEST characters.
    """
    request = {
        "template": template,
        "variables": dict(variables),
        "longest": LONGEST,
        "cpu_seconds": CPU_SECONDS,
    }
    return [text for part in _parts(dialogues) for text in _ask(request, part)]


def _parts(dialogues: Sequence[Dialogue]) -> Iterator[list[Dialogue]]:
    """The dialogues in requests of many: in a request of its own, a short dialogue takes four times as long."""
    part, characters = [], 0
    for dialogue in dialogues:
        part.append(dialogue)
        characters += sum(len(message["content"]) for message in dialogue[0])
        if characters >= CHARACTERS_TOGETHER:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _ask(request: dict[str, Any], dialogues: Sequence[Dialogue]) -> list[str]:
    wall_seconds = WALL_SECONDS + CPU_SECONDS * (len(dialogues) - 1)
    try:
        line = json.dumps(request | {"dialogues": [(list(messages), opened) for messages, opened in dialogues]})
        answer: dict[str, Any] = json.loads(_WORKER.ask(line.encode(), wall_seconds))
    except LateError:
        answer = {"error": f"it has not ended after {wall_seconds:g} s"}
    except EndedError as error:
        answer = {
            "error": f"it takes more than {CPU_SECONDS:g} s of processor time" if error.by_its_limit else str(error)
        }
    if "texts" not in answer:
        raise UserError(
            f"The chat template cannot render a dialogue of user and assistant turns ({answer['error'].rstrip('.')}): "
            "give another one with --model.chat-template FILE."
        )
    return answer["texts"]
