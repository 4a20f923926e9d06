"""Finds the debates of a run: the stages with transcripts, who spoke in them, and what became training data."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from mft_jax.config import ExperimentConfig
from mft_jax.debate import Transcript
from mft_jax.errors import UserError
from mft_jax.methods import make_method
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.stage_file import parse_lines, read_committed
from mft_jax.runs.store import DamagedFile, Store
from mft_jax.runs.training_sets import list_training_sets, read_training_set

Speakers = tuple[tuple[str | None, ...], ...]  # [M][N]: the adapter that speaks; None: the base model
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A stage with transcripts."""

    store: Store
    file: str
    method: str
    iteration: int  # 0: without finetuning
    split: Literal["eval", "train"]
    task: str  # the task of the run, or the label of an evaluation on another one
    speakers: Speakers  # empty: not known
    summarizer: Literal["base", "speaker"]

    @property
    def name(self) -> str:
        """The name in links. It stays the same when the report is written again."""
        return self.file.removesuffix(".jsonl")


def list_sources(directory: RunDirectory, config: ExperimentConfig) -> list[Source]:
    """The stages of a run in the order in which it works on them, then its evaluations on other tasks.

    Stages without transcripts are listed too.
    """
    return [*_own_sources(directory.store, config), *_evaluations(directory, config)]


def each_transcript(source: Source) -> Iterator[Transcript]:
    """The committed transcripts of a stage, one at a time, so that few of them are in memory.

    Raises DamagedFile, at any of them, if the stage is damaged or was written by another version of mft_jax.
    """
    lines = parse_lines(read_committed(source.store, source.file))
    try:
        yield from map(Transcript.from_dict, lines)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise DamagedFile(
            f"The debates of {source.store.path(source.file)} are left out: they were written by another version of "
            f"mft_jax ({reason})."
        ) from error


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A training example of an adapter."""

    adapter: str
    kind: str  # first, corrected, kept, ...
    agent: int | None  # the agent whose messages the adapter learns from; None: of any agent
    messages: tuple[tuple[str, str], ...]  # (role, text) of the whole dialogue
    rounds: frozenset[int]  # whose answers are learned, from 1


def read_lessons(source: Source, config: ExperimentConfig, say: Say) -> Mapping[str, list[Lesson]]:
    """{id of the question: the training examples made from its debate}. Empty for evaluations.

    A training set that is damaged is left out, and `say` reports it.
    """
    lessons: dict[str, list[Lesson]] = {}
    if source.split != "train":
        return lessons
    agents = _agents_of_lessons(config)
    try:
        names = list_training_sets(source.store, source.iteration)
    except DamagedFile as error:
        say(str(error))
        names = []
    for name in names:
        try:
            examples = read_training_set(source.store, source.iteration, name)
        except DamagedFile as error:
            say(str(error))
            continue
        for example in examples:
            lessons.setdefault(example["id"], []).extend(_lessons(name, example, agents.get(name)))
    return lessons


def _own_sources(store: Store, config: ExperimentConfig) -> Iterator[Source]:
    shared = {"store": store, "task": config.task.name, "summarizer": config.debate.summarizer}
    for name in config.baselines:
        speakers = tuple((None,) * len(row) for row in _speakers(name, config, "eval"))  # the base model speaks for all
        file = layout.evaluation(name, 0)
        yield Source(**shared, file=file, method=name, iteration=0, split="eval", speakers=speakers)
    for k in range(1, config.iterations + 1):
        for split, file in (("train", layout.debate(k)), ("eval", layout.evaluation(config.method, k))):
            speakers = _speakers(config.method, config, split)
            yield Source(**shared, file=file, method=config.method, iteration=k, split=split, speakers=speakers)


def _evaluations(directory: RunDirectory, config: ExperimentConfig) -> Iterator[Source]:
    """The evaluations in evaluations/LABEL/, which are stored like runs."""
    for folder in directory.store.names(layout.EVALUATIONS):
        label = folder.rsplit("/", 1)[-1]
        for entry in directory.store.names(folder):
            found = re.fullmatch(r"iteration_(\d+)", entry.rsplit("/", 1)[-1])
            if found:
                file = f"{folder}/{layout.evaluation(config.method, int(found[1]))}"
                yield Source(
                    store=directory.store, file=file, method=config.method, iteration=int(found[1]), split="eval",
                    task=label, speakers=_speakers(config.method, config, "eval"), summarizer=config.debate.summarizer,
                )  # fmt: skip


def _speakers(name: str, config: ExperimentConfig, split: str) -> Speakers:
    """Who speaks when in the debates of a method; empty if this version does not have the method."""
    try:
        method = make_method(name, config)
    except UserError:
        return ()
    return (method.protocol if split == "train" else method.evaluation).speakers


def _agents_of_lessons(config: ExperimentConfig) -> dict[str, int]:
    """{adapter: the agent that it learns from}, for adapters that learn from one agent only."""
    try:
        lessons = make_method(config.method, config).lessons
    except UserError:
        return {}
    found = {lesson.adapter: getattr(lesson.select, "agent", None) for lesson in lessons}
    return {name: agent for name, agent in found.items() if isinstance(agent, int)}


def _lessons(adapter: str, example: Mapping[str, Any], agent: int | None) -> Iterator[Lesson]:
    """The dialogue of an example; for a pair also the rejected one. The two of a pair may be dialogues of any agents."""
    kind = str(example.get("kind", ""))
    is_pair = kind == "pair"
    sides = [("preferred", "messages"), ("rejected", "counterpart")] if is_pair else [(kind, "messages")]
    for name, field in sides:
        texts = _texts(example.get(field, ()))
        rounds = range(1, len(texts) // 2 + 1)
        learned = example.get("learned")
        own = rounds if learned is None else (rounds[index] for index in learned)
        yield Lesson(adapter, name, None if is_pair else agent, texts, frozenset(own))


def _texts(messages: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
