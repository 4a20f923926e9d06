"""The inputs of a debate stage as a plain value: two stages with equal inputs have equal transcripts.

A stage is a function of the speakers' weights, the rules of the debate, the sampling settings, the questions, the
prompts, and the seed. The names of adapters, the method, and settings of speed and memory are no inputs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mft_jax.config import lasting
from mft_jax.debate import Debate
from mft_jax.models.fingerprint import adapter_digest
from mft_jax.prompts import Prompts
from mft_jax.setup import Setup
from mft_jax.tasks import Question

# Increase it when the same inputs begin to give other transcripts, for example by another random stream or parser.
FORMAT = 1

Inputs = dict[str, Any]  # plain values, as in JSON


def stage_inputs(debate: Debate, questions: Sequence[Question], setup: Setup) -> Inputs:
    """The inputs of the stage that runs `debate` on `questions`.

    Speakers are identified by a checksum of their weights. The first call in a session reads the whole checkpoint.
    """
    digests = _speaker_digests(debate)
    rules = dataclasses.asdict(debate.protocol)
    rules["speakers"] = [[digests[name] for name in row] for row in debate.protocol.speakers]
    return {
        "format": FORMAT,
        "stage": debate.name,
        "seed": debate.seed,
        "model": setup.session.fingerprint,
        "protocol": rules,
        "sampling": lasting(setup.sampling),
        "task": debate.task.name,
        "questions": {"number": len(questions), "sha256": _sha256([dataclasses.astuple(q) for q in questions])},
        "prompts": _sha256(_all_messages(debate.task.prompts)),
    }


def _speaker_digests(debate: Debate) -> dict[str | None, str]:
    """A checksum for each speaker; "base" for the base model."""
    names = {name for row in debate.protocol.speakers for name in row if name is not None}
    return {None: "base"} | {name: adapter_digest(debate.society.adapter(name)) for name in names}


def _all_messages(prompts: Prompts) -> list[dict[str, str]]:
    """One message of every kind."""
    later = [prompts.later("S", cooperate=c) for c in (False, True)]
    direct = [prompts.later_direct(["A", "B"], cooperate=c) for c in (False, True)]
    first = [prompts.first("Q"), prompts.first("Q", "N")]
    return [*first, *later, *direct, prompts.reconsider(), prompts.hint("A"), prompts.summary("Q", ["A", "B"])]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
