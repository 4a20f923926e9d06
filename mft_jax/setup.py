"""From a configuration to what an experiment computes with: mesh, model, tokenizer, questions, compiled programs."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mft_jax.base_model import CHECKPOINT
from mft_jax.config import ExperimentConfig, ModelSource, SamplingConfig
from mft_jax.debate import Debate, Society
from mft_jax.errors import UserError
from mft_jax.finetuning.step import Step, TrainState, make_train_step
from mft_jax.models.chat import Chat, load_chat
from mft_jax.models.config import ModelConfig, read_model_config
from mft_jax.models.lora import Adapter, init_adapters, resolve_targets
from mft_jax.models.weights import checkpoint_directory, load_base
from mft_jax.parallel.mesh import adapter_shardings, base_sharding, make_mesh
from mft_jax.sampling import Sampler
from mft_jax.tasks import Task, load_task


@dataclasses.dataclass(frozen=True)
class Setup:
    """What does not change during a run."""

    config: ExperimentConfig
    mesh: Mesh
    model: ModelConfig
    base: nnx.State
    chat: Chat
    task: Task
    sampler: Sampler
    train_step: Step

    def fresh_adapters(self) -> Adapter:
        """Adapters of 2N agents, generators then critics, that still are the base model; split over agents."""
        agents, key = 2 * self.config.debate.agents, jax.random.key(self.config.seed)
        init = functools.partial(init_adapters, self.model, self.config.lora, agents=agents)
        return jax.jit(init, out_shardings=adapter_shardings(self.mesh, jax.eval_shape(init, key)))(key)

    def place_state(self, state: TrainState) -> TrainState:
        """Adapters and optimizer state on the devices that the rules give them."""
        return jax.device_put(state, adapter_shardings(self.mesh, state))

    def society(self, adapters: Adapter) -> Society:
        """The speakers of a debate: the first N adapters are generators, the last N critics."""
        agents = self.config.debate.agents
        half = lambda part: jax.tree.map(lambda leaf: leaf[part], adapters)
        parts = half(slice(None, agents)), half(slice(agents, None))
        return Society(*jax.device_put(parts, adapter_shardings(self.mesh, parts)))

    def debate(self, society: Society, name: str, agents: int | None = None, rounds: int | None = None) -> Debate:
        """A debate of `society`; N and M as configured, unless a method has others."""
        config = self.config
        return Debate(
            sampler=self.sampler,
            chat=self.chat,
            task=self.task,
            society=society,
            agents=agents or config.debate.agents,
            rounds=rounds or config.debate.rounds,
            seed=config.seed,
            name=name,
        )


def check_questions(task: Task, chat: Chat, model: ModelConfig) -> None:
    """Raises UserError for a question that alone fills the model's context, before anything is sampled or written."""
    for question in (*task.train, *task.eval):
        length = len(chat.prompt([task.prompts.first(question.text)]))
        if length >= model.max_positions:
            raise UserError(
                f"The question {question.id} makes a prompt of {length} tokens, but the model's context holds "
                f"{model.max_positions}, answer included: shorten or remove it, or take a model with a longer context."
            )


def dtypes(source: ModelSource, mesh: Mesh) -> tuple[jnp.dtype | None, jnp.dtype]:
    """(of the base's weights, None: as they are stored; of computation) on the mesh's devices."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    stored = source.param_dtype if source.param_dtype != "auto" else None if on_cpu else "bfloat16"
    compute = source.compute_dtype if source.compute_dtype != "auto" else "float32" if on_cpu else "bfloat16"
    return None if stored is None else jnp.dtype(stored), jnp.dtype(compute)


def fitted(sampling: SamplingConfig, task: Task, mesh: Mesh) -> SamplingConfig:
    """Settings with no more slots for an agent than a chunk has questions: an empty slot costs as much as a full one."""
    data = mesh.shape["data"]
    most = min(sampling.chunk_questions, max(len(task.train), len(task.eval)))
    rows = min(sampling.rows, -(-most // data) * data)
    return dataclasses.replace(sampling, rows=rows, prefill_rows=min(sampling.prefill_rows, rows))


def base_directory(source: ModelSource) -> pathlib.Path:
    """The checkpoint directory of the frozen base, downloaded when needed. Raises UserError when there is none."""
    return CHECKPOINT if source.path is None else checkpoint_directory(source.path)


def prepare(config: ExperimentConfig) -> Setup:
    """Loads everything and writes nothing. Raises UserError for what the configuration asks for and is not there."""
    task = load_task(config.task, config.seed)
    mesh = make_mesh(config.mesh)
    directory = base_directory(config.model)
    model = read_model_config(directory)
    chat = load_chat(directory, config.model.chat_template, config.model.thinking)
    config = dataclasses.replace(
        config, lora=dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    )
    if len(chat.tokenizer) > model.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(chat.tokenizer)} tokens, but the embedding only {model.vocab_size} rows: "
            "the two are of different models."
        )
    check_questions(task, chat, model)
    stored, compute = dtypes(config.model, mesh)
    graphdef, base = load_base(
        directory,
        model,
        lora_scale=config.lora.scale,
        dtype=stored,
        compute_dtype=compute,
        place=lambda path, tensor: jax.device_put(tensor, base_sharding(mesh, path, tensor.shape)),
    )
    sampler = Sampler(
        graphdef,
        base,
        model,
        fitted(config.sampling, task, mesh),
        agents=config.debate.agents,
        stop_ids=chat.stop_ids,
        mesh=mesh,
        dtype=compute.name,
    )
    return Setup(config, mesh, model, base, chat, task, sampler, make_train_step(graphdef, config.finetuning, mesh))
