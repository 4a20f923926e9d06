"""How many tokens the texts of a run have: assumed for a task, or measured in another run."""

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.stage_file import read_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean numbers of tokens, a multiple of them, and a share."""

    question: float
    """The first prompt: the question, what is asked for, and the chat template."""
    answer: float
    """A sampled answer."""
    summary: float
    """A sampled summary of the other agents' answers."""
    message: float = 40.0
    """What surrounds the summary or the answers in the later prompts: instructions and chat template."""
    longest: float = 2.0
    """The longest texts of a stage, as a multiple of the mean."""
    kept: float = 0.7
    """The share of the answers that agree with the vote, which adapters learn from; measured on first answers."""
    source: str
    """Where these numbers are from, for the person who reads the plan."""

    @property
    def longest_prompt(self) -> float:
        """The longest prompts, as a multiple of the mean: their parts are not all among the longest."""
        return (1 + self.longest) / 2


_ASSUMED = "assumed for {} (measure them with --lengths-from RUN_DIR, a run of a few questions)"
# Means of instruct models of 4 to 8 billion parameters; arithmetic and addition: of the small models in configs/.
TASKS = {
    "arithmetic": Lengths(question=39, answer=60, summary=45, message=25, source=_ASSUMED.format("arithmetic")),
    "addition": Lengths(question=40, answer=20, summary=20, message=25, source=_ASSUMED.format("addition")),
    "gsm8k": Lengths(question=110, answer=180, summary=180, source=_ASSUMED.format("gsm8k")),
    "math": Lengths(question=130, answer=350, summary=250, source=_ASSUMED.format("math")),
    "mmlu": Lengths(question=160, answer=200, summary=200, source=_ASSUMED.format("mmlu")),
    "jsonl": Lengths(question=150, answer=250, summary=200, source=_ASSUMED.format("your own questions")),
}


def assumed_lengths(config: ExperimentConfig) -> Lengths:
    """The lengths assumed for the task; no text is longer than sampling.max_new_tokens."""
    own = TASKS[config.task.name]
    most = config.sampling.max_new_tokens
    return dataclasses.replace(own, answer=min(own.answer, most), summary=min(own.summary, most))


def measured_lengths(run_dir: str | pathlib.Path) -> Lengths:
    """The lengths of the texts in the first training debate of a run. Raises UserError if the run has none."""
    directory = RunDirectory(run_dir)
    config = directory.config()
    lines, _, _ = read_stage(directory.store, layout.debate(1))
    if not lines:
        raise UserError(f"{run_dir} has no debate to measure the lengths of texts in: let `mft run` finish one first.")
    return lengths_of(lines, config, f"measured in {run_dir}, {len(lines)} debates")


def lengths_of(transcripts: Sequence[Mapping[str, Any]], config: ExperimentConfig, source: str) -> Lengths:
    """The lengths of the texts in transcripts, given as parsed JSON."""
    agents = [agent for line in transcripts for agent in line["agents"]]
    turns = [[turn for turn in agent["turns"] if turn["end"] != "unanswerable"] for agent in agents]
    answers = [turn["new_tokens"] for own in turns for turn in own]
    summaries = [
        turn["new_tokens"] for line in transcripts for row in line["summary_turns"] for turn in row if turn is not None
    ]
    first = [own[0]["prompt_tokens"] for own in turns if own]
    if not answers or not first:
        raise UserError("The debates have no answers to measure the lengths of: measure them in another run.")
    question, answer = statistics.mean(first), statistics.mean(answers)
    summary = statistics.mean(summaries) if summaries else 0.0
    shown = summary if summaries else answer * (config.debate.agents - 1)
    growth = [
        b["prompt_tokens"] - a["prompt_tokens"] - a["new_tokens"] for own in turns for a, b in itertools.pairwise(own)
    ]
    agreeing = [
        agent["answers"][0] is not None and agent["answers"][0] == line["vote"]
        for line in transcripts
        for agent in line["agents"]
    ]
    return Lengths(
        question=question,
        answer=answer,
        summary=summary,
        message=max(0.0, statistics.mean(growth) - shown) if growth else TASKS["jsonl"].message,
        longest=max(max(answers) / answer, max(first) / question),
        kept=statistics.mean(agreeing),
        source=source,
    )
