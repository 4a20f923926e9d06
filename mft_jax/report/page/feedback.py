"""The verdicts of people on a run, as data of the page."""

import json
from collections.abc import Callable
from typing import Any

from mft_jax.errors import UserError
from mft_jax.runs.feedback import encode_verdict
from mft_jax.runs.rulings import NO_FEEDBACK, read_feedback
from mft_jax.runs.store import Store
from mft_jax.tasks.answers import equivalent

Json = dict[str, Any]


def feedback_data(store: Store, task: str, say: Callable[[str], None]) -> Json:
    """{"verdicts": [those in feedback.jsonl that concern the run], "overruled": [indices of those that do not count]}.

    `say` reports what is left out. If the file has a broken line, there are no verdicts.
    """
    try:
        feedback = read_feedback(store, task, equivalent)
    except UserError as error:
        say(f"The verdicts are left out. {error}")
        feedback = NO_FEEDBACK
    for problem in feedback.problems:
        say(problem)
    verdicts = list(feedback.verdicts)
    return {
        "verdicts": [json.loads(encode_verdict(verdict)) for verdict in verdicts],
        "overruled": sorted({verdicts.index(old) for old, _ in feedback.conflicts}),
    }
