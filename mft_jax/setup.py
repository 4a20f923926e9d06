"""From a configuration to what a run works with: a session, questions, a method, and its settings resolved."""

import dataclasses

from jax.sharding import Mesh

from mft_jax.config import ExperimentConfig, SamplingConfig
from mft_jax.debate import Debate, Protocol
from mft_jax.errors import UserError
from mft_jax.methods import Method, make_method
from mft_jax.models.chat import Chat
from mft_jax.models.config import ModelConfig
from mft_jax.models.society import Society
from mft_jax.session import Session, open_session
from mft_jax.tasks import Task, load_task


@dataclasses.dataclass(frozen=True)
class Setup:
    """What does not change during a run."""

    config: ExperimentConfig  # with LoRA's targets as this model has them
    session: Session
    task: Task
    method: Method

    def fresh_society(self) -> Society:
        """The method's adapters, which still compute what the base model computes."""
        return self.session.fresh_society(self.method.adapters, self.config.lora, self.config.seed)

    def debate(self, society: Society, name: str, protocol: Protocol | None = None) -> Debate:
        """A debate by the method's protocol, or another one; `name` distinguishes its random draws.

        In a society without adapters, `Society()`, the base model speaks for everyone.
        """
        rules = protocol or self.method.protocol
        if not society.names:
            rules = dataclasses.replace(rules, speakers=((None,) * rules.agents,) * rules.rounds)
        return Debate(
            sampler=self.session.sampler(self.sampling, rules.agents),
            chat=self.session.chat,
            task=self.task,
            protocol=rules,
            society=society,
            seed=self.config.seed,
            name=name,
        )

    @property
    def sampling(self) -> SamplingConfig:
        """The settings with no more slots than there is work for."""
        questions = max(len(self.task.train), len(self.task.eval))
        return limit_slots(self.config.sampling, questions, self.session.mesh)


def prepare(config: ExperimentConfig, session: Session | None = None) -> Setup:
    """Loads everything and writes nothing. Raises UserError for what the configuration asks for and is not there.

    A `session` of the same model and mesh is used instead of loading one.
    """
    method = make_method(config.method, config)
    task = load_task(config.task, config.seed)
    if session is None:
        session = open_session(config.model, config.mesh)
    elif session.source != config.model:
        raise UserError(f"The session has the model {session.source}, expected {config.model}: open another session.")
    check_questions(task, session.chat, session.model)
    return Setup(dataclasses.replace(config, lora=session.resolved(config.lora)), session, task, method)


def check_questions(task: Task, chat: Chat, model: ModelConfig) -> None:
    """Raises UserError for a question that alone fills the model's context, before anything is sampled or written."""
    for question in (*task.train, *task.eval):
        length = len(chat.prompt([task.prompts.first(question.text)]))
        if length >= model.max_positions:
            raise UserError(
                f"The question {question.id} makes a prompt of {length} tokens, but the model's context holds "
                f"{model.max_positions}, answer included: shorten or remove it, or take a model with a longer context."
            )


def limit_slots(sampling: SamplingConfig, questions: int, mesh: Mesh) -> SamplingConfig:
    """Settings with no more slots for an agent than a chunk has questions: an empty slot costs as much as a full one."""
    data = mesh.shape["data"]
    most = min(sampling.chunk_questions, questions)
    rows = min(sampling.rows, -(-most // data) * data)
    return dataclasses.replace(sampling, rows=rows, prefill_rows=min(sampling.prefill_rows, rows))
