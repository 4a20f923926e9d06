"""Prepares a run from its configuration: the session, the questions, the method, and the resolved settings."""

import dataclasses
import functools
from collections.abc import Callable

from jax.sharding import Mesh

from mft_jax.config import ExperimentConfig, MeshConfig, ModelSource, SamplingConfig, validate
from mft_jax.debate import Debate, Protocol
from mft_jax.errors import UserError
from mft_jax.methods import Method, make_method
from mft_jax.models.chat import Chat
from mft_jax.models.config import ModelConfig
from mft_jax.models.society import Society
from mft_jax.parallel import hosts
from mft_jax.parallel.hosts import decide
from mft_jax.sampling import PromptLengths
from mft_jax.session import Session, open_session
from mft_jax.tasks import Task, load_task


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run that do not change while it runs."""

    config: ExperimentConfig  # its lora.targets are resolved to layers of this model
    session: Session
    task: Task
    method: Method

    def fresh_society(self) -> Society:
        """New adapters of the method, as in `Session.fresh_society`."""
        return self.session.fresh_society(self.method.adapters, self.config.lora, self.config.seed)

    def debate(self, society: Society, name: str, protocol: Protocol | None = None) -> Debate:
        """A debate with `protocol`, by default that of the method. `name` is as in `Debate`.

        With a society without adapters, `Society()`, the base model speaks for all agents.
        """
        rules = protocol or self.method.protocol
        if not society.names:
            rules = dataclasses.replace(rules, speakers=((None,) * rules.agents,) * rules.rounds)
        return Debate(
            # The same lanes for every method, so that they all share their compiled programs.
            sampler=self.session.sampler(
                _sampling_of(rules, self.sampling), self.config.debate.agents, self.prompt_lengths
            ),
            chat=self.session.chat,
            task=self.task,
            protocol=rules,
            society=society,
            seed=self.config.seed,
            name=name,
        )

    @functools.cached_property
    def prompt_lengths(self) -> PromptLengths:
        """The lengths to which the prompts of the run are padded, shared by all its debates."""
        return PromptLengths(self.session.mesh)

    @functools.cached_property
    def equivalent(self) -> Callable[[str, str], bool]:
        """`task.equivalent` as host 0 judges it. All hosts must compare the same answers in the same order."""
        compare = functools.cache(lambda left, right: decide(lambda: self.task.equivalent(left, right)))
        return compare if hosts.count() > 1 else self.task.equivalent

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling settings, with no more slots than the questions can fill."""
        questions = max(len(self.task.train), len(self.task.eval))
        return limit_slots(self.config.sampling, questions, self.session.mesh)


def prepare(config: ExperimentConfig, session: Session | None = None) -> Setup:
    """Loads the session, the questions and the method of a run. Writes nothing to the run directory.

    `session` is used if given, otherwise one is opened; it must have the model of the configuration, and its mesh must
    divide the agents and rows. Raises UserError for a configuration that cannot be run.
    """
    method = make_method(config.method, config)
    task = load_task(config.task, config.seed)
    check_gold(method, task)
    if session is None:
        session = open_session(config.model, config.mesh)
    check_session(session, config.model)
    validate(dataclasses.replace(config, mesh=MeshConfig(**session.mesh.shape)), "The mesh of the session")
    check_questions(task, session.chat, session.model)
    return Setup(dataclasses.replace(config, lora=session.resolved(config.lora)), session, task, method)


def check_session(session: Session, source: ModelSource) -> None:
    """Raises UserError if a session has another model."""
    if session.source != source:
        raise UserError(
            f"The session was opened for the model {session.source}, expected {source}: open another session."
        )


def check_gold(method: Method, task: Task) -> None:
    """Raises UserError if the method learns from reference answers that the training questions do not have."""
    without = sum(question.gold is None for question in task.train)
    if method.needs_gold and without:
        raise UserError(
            f"The method {method.name} learns from the true answers of the training questions, but {without} of "
            f"{len(task.train)} have none: give them answers, or use a method that learns from votes, such as majority_ft."
        )


def _sampling_of(rules: Protocol, sampling: SamplingConfig) -> SamplingConfig:
    """The sampling settings of a debate: those of the configuration, where its rules have none of their own."""
    own = {"temperature": rules.temperature, "max_new_tokens": rules.max_new_tokens}
    return dataclasses.replace(sampling, **{name: value for name, value in own.items() if value is not None})


def check_questions(task: Task, chat: Chat, model: ModelConfig) -> None:
    """Raises UserError if the prompt of a question leaves no room for an answer in the model's context."""
    questions = (*task.train, *task.eval)
    prompts = chat.prompts([[task.prompts.first(question.text)] for question in questions])
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) >= model.max_positions:
            raise UserError(
                f"The prompt of question {question.id} has {len(prompt)} tokens, but the model's context holds "
                f"{model.max_positions}, answer included: shorten or remove it, or use a model with a longer context."
            )


def limit_slots(sampling: SamplingConfig, questions: int, mesh: Mesh) -> SamplingConfig:
    """Limits the slots of each agent to the number of questions in a chunk, rounded up to a multiple of the mesh's data axis.

    An empty slot costs as much time as a full one.
    """
    data = mesh.shape["data"]
    most = min(sampling.chunk_questions, questions)
    rows = min(sampling.rows, -(-most // data) * data)
    return dataclasses.replace(sampling, rows=rows, prefill_rows=min(sampling.prefill_rows, rows))
