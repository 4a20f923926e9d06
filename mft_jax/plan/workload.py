"""What a run has to do: the texts that each of its stages samples, and the steps of its finetuning."""

import dataclasses
import math
from collections.abc import Iterator

from mft_jax.budget import Budget
from mft_jax.config import ExperimentConfig
from mft_jax.debate import Protocol
from mft_jax.finetuning.examples import FirstAnswers, PooledFirstAnswers
from mft_jax.finetuning.lesson import Lesson
from mft_jax.methods import Method, make_method
from mft_jax.plan.lengths import Lengths
from mft_jax.programs.slots import bucket
from mft_jax.sampling.lengths import SHORTEST, padded_length

PACKED = 0.9  # share of a packed row that is not padding


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts that are sampled together in one round of all debates of a chunk."""

    per_question: int
    prompt: float  # mean tokens of the prompts
    new: float  # mean sampled tokens
    speakers: int  # different speakers among them
    adapted: bool  # sampled with adapters


@dataclasses.dataclass(frozen=True)
class DebateStage:
    """A debate on `questions` questions: the training debate of an iteration, or an evaluation."""

    name: str
    questions: int
    rounds: tuple[Texts, ...]

    @property
    def prompt_tokens(self) -> float:
        return self.questions * sum(own.per_question * own.prompt for own in self.rounds)

    @property
    def new_tokens(self) -> float:
        return self.questions * sum(own.per_question * own.new for own in self.rounds)


@dataclasses.dataclass(frozen=True)
class FinetuningStage:
    """The finetuning of one iteration."""

    name: str
    steps: int
    train_tokens: float  # of all adapters, over all epochs


def texts_of(rules: Protocol, lengths: Lengths, *, tuned: bool = True) -> tuple[Texts, ...]:
    """What is sampled in each round of a debate: answers, and before the later rounds the summaries.

    Before finetuning the base model speaks for all agents (`tuned` False).
    """
    others, found = rules.agents - 1, []
    lengths = dataclasses.replace(lengths, answer=min(lengths.answer, rules.max_new_tokens or lengths.answer))
    prompt = lengths.question
    for number, speakers in enumerate(rules.speakers):
        if number:
            shown = 0.0
            if others and rules.shows == "summary":
                asked = lengths.question + others * lengths.answer + lengths.message
                by_speakers = tuned and rules.summarizer == "speaker"
                found.append(Texts(rules.agents, asked, lengths.summary, 1, by_speakers))
                shown = lengths.summary
            elif others and rules.shows == "answers":
                shown = others * lengths.answer
            prompt += lengths.answer + shown + lengths.message
        names = {name for name in speakers if name is not None} if tuned else set()
        found.append(Texts(rules.agents, prompt, lengths.answer, max(1, len(names)), bool(names)))
    return tuple(found)


def longest_prompt(rules: Protocol, lengths: Lengths, most: int) -> float:
    """The longest prompt of a debate in which every text reaches `most` tokens."""
    extreme = dataclasses.replace(
        lengths, question=lengths.question * lengths.longest, answer=float(most), summary=float(most)
    )
    return max(own.prompt for own in texts_of(rules, extreme))


def stages_of(config: ExperimentConfig, lengths: Lengths) -> list[DebateStage | FinetuningStage]:
    """All stages of a run in order. Early ends of debates (debate.stop_at_agreement) are not counted on."""
    method, task = make_method(config.method, config), config.task
    stages: list[DebateStage | FinetuningStage] = []
    for name, rules in baseline_rules(config, lengths):
        stages.append(DebateStage(f"{name} (untuned)", task.eval_questions, texts_of(rules, lengths, tuned=False)))
    for number in range(1, config.iterations + 1 if method.lessons else 1):
        title = f"iteration {number}: "
        stages.append(DebateStage(f"{title}debate", task.train_questions, texts_of(method.protocol, lengths)))
        stages.append(finetuning_of(f"{title}finetuning", config, method, lengths))
        stages.append(DebateStage(f"{title}evaluation", task.eval_questions, texts_of(method.evaluation, lengths)))
    return stages


def baseline_rules(config: ExperimentConfig, lengths: Lengths) -> list[tuple[str, Protocol]]:
    """The baselines and their rules. A vote at a budget has as many answers as the tokens allow; a trained token counts twice."""
    return [
        (name, make_method(name, config, _answers_for(name, config, lengths)).evaluation) for name in config.baselines
    ]


def _answers_for(name: str, config: ExperimentConfig, lengths: Lengths) -> int | None:
    budget = Budget.of(name, config)
    if budget is None:
        return None
    method, asked = make_method(budget.method, config), config.task.eval_questions
    debated = lambda rules: sum(own.per_question * (own.prompt + own.new) for own in texts_of(rules, lengths))
    trained = 2 * finetuning_of("", config, method, lengths).train_tokens if method.lessons else 0.0
    training = budget.iteration * (config.task.train_questions * debated(method.protocol) + trained)
    return max(1, round((debated(method.evaluation) + training / asked) / (lengths.question + lengths.answer)))


def finetuning_of(name: str, config: ExperimentConfig, method: Method, lengths: Lengths) -> FinetuningStage:
    """The optimizer steps of an iteration: those of the adapter with the most data."""
    tuning, steps, tokens = config.finetuning, 0, 0.0
    for lesson in method.lessons:
        examples, length = _examples_of(lesson, method.protocol, lengths)
        own = examples * config.task.train_questions * length
        rows = math.ceil(own / (PACKED * tuning.row_tokens))
        steps = max(steps, math.ceil(rows * lesson.settings.epochs / tuning.batch_rows))
        tokens += own * lesson.settings.epochs
    return FinetuningStage(name, steps, tokens)


def _examples_of(lesson: Lesson, rules: Protocol, lengths: Lengths) -> tuple[float, float]:
    """(examples for each question, tokens of an example) of one adapter."""
    first, whole = lengths.question + lengths.answer, texts_of(rules, lengths)[-1].prompt + lengths.answer
    pooled = getattr(lesson.select, "agents", None)  # one adapter learns from the answers of all agents
    if pooled is not None:
        return lengths.kept * pooled, first
    return lengths.kept, first if isinstance(lesson.select, FirstAnswers) else whole


def row_targets(config: ExperimentConfig, method: Method, lengths: Lengths) -> int:
    """M of the training step: the largest number of targets in a row, rounded up as packing does."""
    size, most = config.finetuning.row_tokens, 0.0
    for lesson in method.lessons:
        _, length = _examples_of(lesson, method.protocol, lengths)
        answers = method.protocol.rounds
        if isinstance(lesson.select, FirstAnswers | PooledFirstAnswers) or _learns_last(lesson):
            answers = 1
        most = max(most, min(1.0, answers * lengths.answer / length) * size)
    step = max(64, size // 256 * 64)
    return min(math.ceil(most / step) * step, max(64, -(-size // 64) * 64))


def _learns_last(lesson: Lesson) -> bool:
    """Whether only the last answer of a dialogue is learned."""
    select = lesson.select
    return getattr(select, "answers", None) == "last" or getattr(select, "final_turn_only", False)


def all_texts(stages: list[DebateStage | FinetuningStage]) -> Iterator[Texts]:
    for stage in stages:
        if isinstance(stage, DebateStage):
            yield from stage.rounds


def padded_prompt(prompt: float) -> int:
    """The length that prompts of about this many tokens are padded to."""
    return padded_length(math.ceil(prompt))


def cache_columns(longest: float, config: ExperimentConfig) -> int:
    """S, the cache length of a stage whose longest prompt has this many tokens; as the sampler chooses it."""
    new = config.sampling.max_new_tokens
    return min(bucket(math.ceil(longest), SHORTEST) + bucket(new), bucket(math.ceil(longest) + new, SHORTEST))
