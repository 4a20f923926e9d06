"""What is expensive to load and shared by all runs in a process: weights, tokenizer, mesh and compiled programs."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from mft_jax.base_model import CHECKPOINT
from mft_jax.config import LoraConfig, MeshConfig, ModelSource, SamplingConfig
from mft_jax.errors import UserError
from mft_jax.models.chat import Chat, load_chat
from mft_jax.models.config import ModelConfig, read_model_config
from mft_jax.models.fingerprint import checkpoint_digest
from mft_jax.models.lora import Adapter, AdapterWeights, init_society, resolve_targets
from mft_jax.models.society import Society
from mft_jax.models.weights import checkpoint_directory, load_base
from mft_jax.parallel.hosts import decide, everywhere
from mft_jax.parallel.mesh import base_sharding, make_mesh, replicated, society_shardings
from mft_jax.parallel.placement import to_devices
from mft_jax.programs import Programs
from mft_jax.sampling import PromptLengths, Sampler
from mft_jax.seeds import adapter_key, pin_jax


@dataclasses.dataclass(frozen=True)
class Session:
    """One base model on one mesh. Runs with any method, adapters and task can share it; it has no state of a run."""

    source: ModelSource
    directory: pathlib.Path  # of the checkpoint
    model: ModelConfig
    chat: Chat
    mesh: Mesh
    base: nnx.State  # the frozen weights, placed on the mesh
    programs: Programs

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What determines the answers of the base model: a checksum of its checkpoint, dtypes, and the chat template.

        The first call reads every byte of the checkpoint.
        """
        template = str(self.chat.tokenizer.chat_template)
        return {
            "checkpoint": decide(lambda: checkpoint_digest(self.directory)),
            "param_dtypes": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.base)}),
            "compute_dtype": self.programs.dtype,
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
            "thinking": self.chat.thinking,
        }

    def sampler(self, config: SamplingConfig, lanes: int, lengths: PromptLengths | None = None) -> Sampler:
        """A sampler with these settings; `lanes` and `lengths` are as in `Sampler`."""
        return Sampler(self.programs, self.base, config, stop_ids=self.chat.stop_ids, lanes=lanes, lengths=lengths)

    def fresh_society(self, names: Sequence[str], lora: LoraConfig, seed: int) -> Society:
        """New adapters, initialized from `seed` and sharded over agents. Their update of the base model is zero."""
        return self.society(names, self._initializer(lora, len(names))(adapter_key(seed)), lora)

    @functools.cached_property
    def _initializer(self) -> Callable[[LoraConfig, int], Callable[[Array], AdapterWeights]]:
        """`init_society` for (settings, number of adapters), jitted once, so that the runs of a grid do not compile it again."""

        def jitted(lora: LoraConfig, adapters: int) -> Callable[[Array], AdapterWeights]:
            init = functools.partial(init_society, self.model, lora, adapters=adapters)
            return jax.jit(init, out_shardings=society_shardings(self.mesh, jax.eval_shape(init, adapter_key(0))))

        return functools.cache(jitted)

    def society(self, names: Sequence[str], weights: AdapterWeights, lora: LoraConfig) -> Society:
        """A society of these names and stacked weights [A, ...], all with the scale of `lora`."""
        scale = to_devices(np.full(len(names), lora.scale, np.float32), replicated(self.mesh))
        return Society(tuple(names), Adapter(weights, scale), self.mesh)

    def resolved(self, lora: LoraConfig) -> LoraConfig:
        """`lora` with its targets resolved to layers of this model. Raises UserError for an unknown layer."""
        return dataclasses.replace(lora, targets=resolve_targets(self.model, lora.targets))


def open_session(source: ModelSource, mesh_config: MeshConfig) -> Session:
    """Loads a base model onto a mesh.

    Raises UserError if a file is missing or invalid, if the tokenizer does not match the model, or if there are too few
    devices.
    """
    pin_jax()
    mesh = make_mesh(mesh_config)
    return everywhere(lambda: _load(source, mesh))


def _load(source: ModelSource, mesh: Mesh) -> Session:
    """Reads what this host needs of a base model."""
    directory = base_directory(source)
    model = read_model_config(directory)
    chat = load_chat(directory, source.chat_template, source.thinking)
    if len(chat.tokenizer) > model.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(chat.tokenizer)} tokens, but the embedding only {model.vocab_size} "
            "rows: use the tokenizer of this model."
        )
    stored, compute = dtypes(source, mesh)
    graphdef, base = load_base(
        directory,
        model,
        dtype=stored,
        compute_dtype=compute,
        mesh=mesh,
        shardings=functools.partial(base_sharding, mesh),
    )
    return Session(source, directory, model, chat, mesh, base, Programs(graphdef, model, mesh, compute.name))


def base_directory(source: ModelSource) -> pathlib.Path:
    """The checkpoint directory of the base model, downloaded if necessary. Raises UserError if it cannot be found."""
    return CHECKPOINT if source.path is None else checkpoint_directory(source.path)


def dtypes(source: ModelSource, mesh: Mesh) -> tuple[jnp.dtype | None, jnp.dtype]:
    """(dtype of the base weights, compute dtype) on the devices of the mesh. None: the dtype of the stored weights."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    stored = source.param_dtype if source.param_dtype != "auto" else None if on_cpu else "bfloat16"
    compute = source.compute_dtype if source.compute_dtype != "auto" else "float32" if on_cpu else "bfloat16"
    return None if stored is None else jnp.dtype(stored), jnp.dtype(compute)
