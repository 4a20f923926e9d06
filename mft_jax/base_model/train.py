"""Trains the base model of the package from scratch on two CPU cores, in several runs.

docs/base_model.md lists the commands and the training data of each run. Each run writes a Hugging Face checkpoint
directory, and its losses to log.jsonl in this directory.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mft_jax.base_model.demonstrations import STAGES, demonstrations
from mft_jax.base_model.tokenizer import save_tokenizer, train_tokenizer
from mft_jax.models.chat import Chat, load_chat
from mft_jax.models.config import ModelConfig, parse_model_config
from mft_jax.models.decoder import build
from mft_jax.models.weights import load_base, save_base
from mft_jax.seeds import base_model_key

LONGEST = 1024  # tokens: the context length in config.json
POOL = 64  # number of demonstrations that packing chooses from
Batch = dict[str, np.ndarray]  # tokens, positions, segment_ids: [B, T] int32; targets: [B, T] bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one training run."""

    out: pathlib.Path
    """Directory for the checkpoint and log.jsonl."""
    start: pathlib.Path | None = None
    """Checkpoint directory to start from; None: random weights."""
    stage: Literal["answers", "debates", "critics", "polish", "shipped"] = "answers"
    """The training data: see STAGES in demonstrations.py."""
    steps: int = 5000
    """Optimizer steps."""
    rows: int = 16
    """B: packed rows per batch."""
    row_tokens: int = 120
    """T: tokens per packed row; longer demonstrations are skipped. First answers fit 120, nearly all debates 384."""
    learning_rate: float = 2.5e-3
    """Peak of the cosine schedule, which ends at a hundredth of the peak."""
    warmup_steps: int = 150
    weight_decay: float = 0.01
    seed: int = 0
    log_every: int = 50
    """Steps between lines in log.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; each replaces the previous one."""
    devices: int = 2
    """Number of CPU devices that a batch is sharded over. One device does not keep two cores busy."""
    embed: int = 128
    ffw: int = 384
    layers: int = 4


def main(recipe: Recipe) -> None:
    """Runs one training run. Raises FloatingPointError for a loss that is not finite."""
    jax.config.update("jax_num_cpu_devices", recipe.devices)
    chat, config = prepare(recipe)
    graphdef, base = load_base(recipe.start, config) if recipe.start else initialize(config, recipe.seed)
    mesh = jax.make_mesh((recipe.devices,), ("data",), axis_types=(AxisType.Auto,))
    base = jax.device_put(base, NamedSharding(mesh, PartitionSpec()))
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    optimizer = make_optimizer(recipe)
    step, state = compile_step(graphdef, optimizer), optimizer.init(base)
    began, losses = time.perf_counter(), []
    with (recipe.out / "log.jsonl").open("w") as log:
        for number, batch in enumerate(itertools.islice(batches_in_background(recipe), recipe.steps), start=1):
            base, state, loss, predicted = step(base, state, jax.device_put(batch, by_rows))
            losses.append(loss)
            if number % recipe.log_every == 0 or number == recipe.steps:
                seconds = time.perf_counter() - began
                line = log_line(recipe, number, losses, step_accuracy(chat, batch, np.asarray(predicted)), seconds)
                print(line, file=log, flush=True)
                print(line, flush=True)
                losses = []
            if number % recipe.save_every == 0 or number == recipe.steps:
                save_base(base, recipe.out, config)


def prepare(recipe: Recipe) -> tuple[Chat, ModelConfig]:
    """Writes the tokenizer and config.json of the checkpoint, and loads both."""
    save_tokenizer(train_tokenizer(seed=0), recipe.out, LONGEST)
    chat = load_chat(recipe.out)
    raw = config_json(recipe, chat)
    (recipe.out / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    return chat, parse_model_config(raw)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with gradient clipping and a cosine schedule with warm-up."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup_steps, recipe.steps, recipe.learning_rate / 100
    )
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=recipe.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def log_line(recipe: Recipe, number: int, losses: list[Array], steps_right: float, seconds: float) -> str:
    """One JSON line for log.jsonl, with the mean loss since the previous line.

    Raises FloatingPointError for a loss that is not finite.
    """
    loss = float(jnp.stack(losses).mean())
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss} at step {number}: choose a lower --learning-rate than {recipe.learning_rate}."
        )
    tokens = number * recipe.rows * recipe.row_tokens
    values = {"step": number, "tokens": tokens, "seconds": round(seconds), "loss": round(loss, 4)}
    return json.dumps(values | {"steps_right": round(steps_right, 4), "tokens_per_second": round(tokens / seconds)})


def config_json(recipe: Recipe, chat: Chat) -> dict:
    """The config.json of the model, a Hugging Face Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(chat.tokenizer),
        "hidden_size": recipe.embed,
        "intermediate_size": recipe.ffw,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.embed // 32,
        "num_key_value_heads": recipe.embed // 64,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": LONGEST,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.04,
        "eos_token_id": chat.tokenizer.eos_token_id,
        "pad_token_id": chat.tokenizer.pad_token_id,
        "dtype": "float32",
    }


def initialize(config: ModelConfig, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """The graphdef and random weights: norm scales are 1, the others normal with standard deviation `init_range`."""
    graphdef, base = build(config)
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(base))
    keys = jax.random.split(base_model_key(seed), len(flat))
    # Drawn as vectors: the same numbers, but XLA compiles a draw of several axes twenty times slower.
    normal = lambda key, shape: config.init_range * jax.random.normal(key, (math.prod(shape),)).reshape(shape)

    def draw(key: Array, name: str, shape: tuple[int, ...]) -> Array:
        if name == "scale":
            return jnp.ones(shape)
        return normal(key, shape[::-1]).T if name == "weight" else normal(key, shape)  # the numbers of the kernel

    leaves = [draw(key, path[-1].key, spec.shape) for key, (path, spec) in zip(keys, flat, strict=True)]
    nnx.replace_by_pure_dict(base, jax.tree_util.tree_unflatten(treedef, leaves))
    return graphdef, base


def compile_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted training step: (base, optimizer state, batch) -> (base, optimizer state, loss, predicted).

    The loss is in nats per target, `predicted` [B, T] are the most likely next tokens. Base and state are donated.
    """

    def loss_of(base: nnx.State, batch: dict[str, Array]) -> tuple[Float[Array, ""], Int[Array, "B T"]]:
        model = nnx.merge(graphdef, base)
        logits = model.logits(model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"]))
        following = jnp.roll(batch["tokens"], -1, axis=1)
        wanted: Bool[Array, "B T"] = jnp.roll(batch["targets"], -1, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
        return jnp.sum(losses * wanted) / jnp.maximum(jnp.sum(wanted), 1), jnp.argmax(logits, axis=-1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(base: nnx.State, state: optax.OptState, batch: dict[str, Array]):
        (loss, predicted), gradient = jax.value_and_grad(loss_of, has_aux=True)(base, batch)
        updates, state = optimizer.update(gradient, state, base)
        return optax.apply_updates(base, updates), state, loss, predicted

    return step


def batches_in_background(recipe: Recipe) -> Iterator[Batch]:
    """The batches of `pack_batches`, made in another process during the training steps."""
    queue = multiprocessing.get_context("spawn").Queue(maxsize=16)
    arguments = (queue, recipe)
    multiprocessing.get_context("spawn").Process(target=_put_batches, args=arguments, daemon=True).start()
    while True:
        yield queue.get()


def _put_batches(queue: multiprocessing.Queue, recipe: Recipe) -> None:
    for batch in pack_batches(recipe, load_chat(recipe.out)):
        queue.put(batch)


def pack_batches(recipe: Recipe, chat: Chat) -> Iterator[Batch]:
    """Packs demonstrations into an endless stream of batches.

    Each row is filled with the longest demonstration of a pool that still fits, until none fits.
    """
    source = demonstrations(recipe.seed, STAGES[recipe.stage])
    encoded = (chat.example(own.messages, [-1] if own.final_turn_only else None) for own in source)
    fitting = (example for example in encoded if len(example[0]) <= recipe.row_tokens)
    pool = list(itertools.islice(fitting, POOL))
    while True:
        shape = (recipe.rows, recipe.row_tokens)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segment_ids")}
        batch["targets"] = np.zeros(shape, bool)
        for row in range(recipe.rows):
            used = 0
            for segment in itertools.count(1):
                sizes = [len(ids) if used + len(ids) <= recipe.row_tokens else 0 for ids, _ in pool]
                if not any(sizes):
                    break
                ids, targets = pool.pop(int(np.argmax(sizes)))
                pool.append(next(fitting))
                place = (row, slice(used, used + len(ids)))
                batch["tokens"][place], batch["targets"][place] = ids, targets
                batch["positions"][place], batch["segment_ids"][place] = np.arange(len(ids)), segment
                used += len(ids)
        yield batch


def step_accuracy(chat: Chat, batch: Batch, predicted: np.ndarray) -> float:
    """The share of target lines whose result, the text after the last "=", the model predicts correctly."""
    equals, newline = (chat.tokenizer(sign, add_special_tokens=False)["input_ids"][0] for sign in "=\n")
    right = total = 0
    for tokens, targets, guesses in zip(batch["tokens"], batch["targets"], predicted, strict=True):
        begin = None
        for place in np.flatnonzero(targets):
            if tokens[place] == equals:
                begin = place
            elif tokens[place] == newline and begin is not None:
                right += np.array_equal(guesses[begin:place], tokens[begin + 1 : place + 1])
                total += 1
                begin = None
    return right / max(total, 1)


if __name__ == "__main__":
    main(tyro.cli(Recipe))
