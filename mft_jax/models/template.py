"""Chat templates, rendered in a process of their own (see mft_jax.worker).

A template is a program that comes with a checkpoint. Its sandbox keeps it from doing anything but making text, but not
from looping for ever or filling the memory.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.prompts import Message
from mft_jax.worker import EndedError, LateError, Worker

CPU_SECONDS = 2.0  # for one rendering; usual ones take a millisecond
WALL_SECONDS = 60.0  # for one rendering, in case the process sleeps for ever
LONGEST = 10_000_000  # characters of a rendering; more than the longest context of any model holds

_WORKER = Worker(pathlib.Path(__file__).with_name("template_worker.py"))
start = _WORKER.start  # without waiting: its imports take most of a second


def render(template: str, messages: Sequence[Message], *, opened: bool, variables: Mapping[str, Any]) -> str:
    """The text of a dialogue, as transformers renders it; with `opened` it ends with the generation prompt.

    A template that asks for today's date always gets the same one. Raises UserError when the template fails, when it
    needs more than CPU_SECONDS, WALL_SECONDS or 1 GB of memory, and when it makes more than LONGEST characters.
    """
    request = {
        "template": template,
        "messages": list(messages),
        "opened": opened,
        "variables": dict(variables),
        "longest": LONGEST,
        "cpu_seconds": CPU_SECONDS,
    }
    try:
        answer = json.loads(_WORKER.ask(json.dumps(request).encode(), WALL_SECONDS))
    except LateError:
        answer = {"error": f"it has not ended after {WALL_SECONDS:g} s"}
    except EndedError as error:
        answer = {
            "error": f"it takes more than {CPU_SECONDS:g} s of processor time" if error.by_its_limit else str(error)
        }
    if "text" not in answer:
        raise UserError(
            f"The chat template cannot render a dialogue of user and assistant turns ({answer['error'].rstrip('.')}): "
            "give another one with --model.chat-template FILE."
        )
    return answer["text"]
