"""Every setting, as frozen dataclasses: YAML in, validated, YAML out. Field comments become the command's help."""

import dataclasses
import difflib
import pathlib
import types
import typing
from typing import Any, Literal

import yaml

from mft_jax.errors import UserError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # Phi-3's
Dtype = Literal["float32", "bfloat16"]
MATH_LEVELS = range(1, 6)
ADDITION_DIGITS = range(1, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    path: str | None = None
    """Checkpoint directory or hub name of the base model; none: the small model shipped in the package."""
    param_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen base's weights; auto: bfloat16 on accelerators, as the checkpoint stores them on CPUs."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and of the KV cache; auto: bfloat16 on accelerators, float32 on CPUs."""
    chat_template: str | None = None
    """File with a Jinja chat template, for checkpoints without one, or in place of theirs."""
    thinking: bool = False
    """Whether reasoning models (Qwen3) think before each answer; it takes a large sampling.max_new_tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 16
    """Rank R of every adapter."""
    alpha: float = 32.0
    """An adapter's delta is scaled by alpha / rank."""
    targets: tuple[str, ...] = TARGETS
    """The linear layers that are adapted; where a model fuses some into one (Phi-3), that one."""
    dtype: Dtype = "float32"
    """Type of adapters and optimizer state."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str = "arithmetic"
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions."""
    train_questions: int = 500
    """Questions debated to make training data; their gold answers are never used for it."""
    eval_questions: int = 500
    """Held-out questions."""
    train_path: str | None = None
    """jsonl only: file of {"question", "answer"} lines to train on."""
    eval_path: str | None = None
    """jsonl only: file to evaluate on; none: held out from train_path."""
    data_dir: str | None = None
    """gsm8k, math and mmlu only: directory with the data set's original files; none: they are downloaded."""
    cache_dir: str | None = None
    """Where prepared data sets are kept; none: the user's cache directory."""
    math_levels: tuple[int, ...] = (1, 2, 3)
    """math only: the levels of difficulty that questions are taken from, of 1 to 5."""
    addition_digits: int = 2
    """addition only: digits of each of the two numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebateConfig:
    agents: int = 3
    """N: that many generators and that many critics."""
    rounds: int = 2
    """M: the first answer, then M - 1 answers with the others' in view."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 0.9
    """Nucleus: the smallest set of tokens with this much probability."""
    max_new_tokens: int = 128
    """Longest answer or summary, in tokens."""
    rows: int = 64
    """B: sequences decoded at once for each agent, at most as many as a chunk has questions; finished ones are refilled."""
    prefill_rows: int = 16
    """Prompts read at once for each agent."""
    steps_per_dispatch: int = 32
    """Tokens decoded by a compiled call before the host looks again."""
    chunk_questions: int = 100
    """Questions debated between two journal entries: what a kill can cost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleConfig:
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    epochs: int = 2
    """Passes over the role's training set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    generator: RoleConfig = RoleConfig()
    critic: RoleConfig = RoleConfig()
    batch_rows: int = 4
    """B: packed rows in an agent's batch."""
    row_tokens: int = 512
    """T: tokens in a packed row; longer dialogues are left out and counted."""
    warmup: float = 0.03
    """Share of an agent's steps over which its learning rate rises; then a cosine falls to 0."""
    weight_decay: float = 0.0
    """AdamW's, decoupled."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Each agent's gradient is scaled down to this norm."""
    critic_mix: float = 0.5
    """w: share of corrected dialogues (wrong first, right last) in a critic's data, by the rule `share`."""
    critic_rule: Literal["share", "released_code"] = "share"
    """released_code: every corrected dialogue, and after each a kept one with probability 1/2."""
    final_turn_only: bool = False
    """Critics learn only their last answer, instead of all assistant turns of the dialogue."""
    restart_from_base: bool = False
    """Each iteration finetunes fresh adapters instead of going on from the last ones."""
    save_every: int = 50
    """Optimizer steps between checkpoints within an iteration."""
    agents_at_once: int | None = None
    """Agents whose gradients a device computes together: fewer take less memory. None: one on CPUs, all elsewhere."""
    remat: bool = False
    """Recompute activations in the backward pass: a third more work for less memory; on CPUs it saves none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    agent: int = 1
    """Devices over which agents are split; divides N."""
    data: int = 1
    """Devices over which rows are split; divides `sampling.rows`, `sampling.prefill_rows` and `finetuning.batch_rows`."""
    model: int = 1
    """Devices over which the weights are split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    run_dir: str = "runs/experiment"
    """Directory of the run; an unfinished run there goes on."""
    seed: int = 0
    """Of questions, sampling, adapters and data order."""
    iterations: int = 1
    """L: rounds of debate and finetuning."""
    baselines: tuple[Literal["base", "majority", "debate"], ...] = ("base", "majority", "debate")
    """Untuned methods evaluated before the first iteration."""
    model: ModelSource = ModelSource()
    lora: LoraConfig = LoraConfig()
    task: TaskConfig = TaskConfig()
    debate: DebateConfig = DebateConfig()
    sampling: SamplingConfig = SamplingConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    mesh: MeshConfig = MeshConfig()


def load_config(path: str | pathlib.Path) -> ExperimentConfig:
    """Reads a YAML file. Raises UserError that names the file and field of whatever is wrong."""
    path = pathlib.Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(
            f"Cannot read the configuration {path} ({error.strerror}): give the path of a YAML file."
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    return from_dict(raw or {}, source=str(path))


def from_dict(raw: dict[str, Any], source: str = "configuration") -> ExperimentConfig:
    """Builds and validates a configuration from plain values."""
    config = _build(ExperimentConfig, raw, source, "")
    validate(config, source)
    return config


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Plain values, tuples as lists: what `to_yaml` writes and `from_dict` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: ExperimentConfig) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def validate(config: ExperimentConfig, source: str = "configuration") -> None:
    """Raises UserError for a value out of range; the field is named as the command spells it."""
    at_least_one = {
        "iterations": config.iterations,
        "debate.agents": config.debate.agents,
        "debate.rounds": config.debate.rounds,
        "lora.rank": config.lora.rank,
        "task.eval_questions": config.task.eval_questions,
        "sampling.max_new_tokens": config.sampling.max_new_tokens,
        "sampling.rows": config.sampling.rows,
        "sampling.prefill_rows": config.sampling.prefill_rows,
        "sampling.steps_per_dispatch": config.sampling.steps_per_dispatch,
        "sampling.chunk_questions": config.sampling.chunk_questions,
        "finetuning.generator.epochs": config.finetuning.generator.epochs,
        "finetuning.critic.epochs": config.finetuning.critic.epochs,
        "finetuning.batch_rows": config.finetuning.batch_rows,
        "finetuning.row_tokens": config.finetuning.row_tokens,
        "finetuning.save_every": config.finetuning.save_every,
        "mesh.agent": config.mesh.agent,
        "mesh.data": config.mesh.data,
        "mesh.model": config.mesh.model,
    }
    for name, value in at_least_one.items():
        _check(value >= 1, source, name, value, "at least 1")
    at_once = config.finetuning.agents_at_once
    _check(at_once is None or at_once >= 1, source, "finetuning.agents_at_once", at_once, "at least 1")
    # 0 is an evaluation without training.
    _check(config.task.train_questions >= 0, source, "task.train_questions", config.task.train_questions, "0 or more")
    digits, levels = config.task.addition_digits, config.task.math_levels
    _check(digits in ADDITION_DIGITS, source, "task.addition_digits", digits, "from 1 to 9")
    _check(len(levels) > 0, source, "task.math_levels", list(levels), "at least one level")
    for level in levels:
        _check(level in MATH_LEVELS, source, "task.math_levels", level, "levels from 1 to 5")
    _check(config.sampling.temperature >= 0, source, "sampling.temperature", config.sampling.temperature, "0 or more")
    _check(0 < config.sampling.top_p <= 1, source, "sampling.top_p", config.sampling.top_p, "above 0 and at most 1")
    _check(
        0 <= config.finetuning.critic_mix <= 1,
        source,
        "finetuning.critic_mix",
        config.finetuning.critic_mix,
        "from 0 to 1",
    )
    _check(
        0 <= config.finetuning.warmup < 1, source, "finetuning.warmup", config.finetuning.warmup, "from 0 to below 1"
    )
    _check(config.finetuning.clip_norm > 0, source, "finetuning.clip_norm", config.finetuning.clip_norm, "above 0")
    for role in ("generator", "critic"):
        rate = getattr(config.finetuning, role).learning_rate
        _check(rate > 0, source, f"finetuning.{role}.learning_rate", rate, "above 0")
    for target in config.lora.targets:
        known = (*TARGETS, *FUSED)
        _check(target in known, source, "lora.targets", target, f"among {', '.join(known)}")
    _check(len(config.lora.targets) > 0, source, "lora.targets", list(config.lora.targets), "at least one layer")
    _validate_mesh(config, source)


def _validate_mesh(config: ExperimentConfig, source: str) -> None:
    """What is split over devices must divide evenly."""
    sizes = {"sampling.rows": config.sampling.rows, "sampling.prefill_rows": config.sampling.prefill_rows,
             "finetuning.batch_rows": config.finetuning.batch_rows}  # fmt: skip
    for name, value in sizes.items():
        _check(value % config.mesh.data == 0, source, name, value, f"a multiple of mesh.data = {config.mesh.data}")
    _check(
        config.debate.agents % config.mesh.agent == 0,
        source,
        "debate.agents",
        config.debate.agents,
        f"a multiple of mesh.agent = {config.mesh.agent}",
    )


def _check(holds: bool, source: str, name: str, got: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{source}: {name} is {got!r}, expected {expected}.")


def _build(kind: Any, raw: Any, source: str, prefix: str) -> Any:
    """A dataclass from a mapping, checked field by field."""
    if not isinstance(raw, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} is {raw!r}, expected a mapping of fields.")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    values = {}
    for name, value in raw.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            raise UserError(f"{source}: there is no field {prefix}{name}; did you mean {prefix}{near[0]}?")
        values[name] = _convert(hints[name], value, source, prefix + name)
    return kind(**values)


def _convert(hint: Any, value: Any, source: str, name: str) -> Any:
    """`value` as the type `hint`, or a UserError; ints pass for floats, and YAML's 1e-3 (a string to it) as well."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, name + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, source, name)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{source}: {name} is {value!r}, expected one of {', '.join(map(repr, args))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {name} is {value!r}, expected a list.")
        return tuple(_convert(args[0], item, source, name) for item in value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{source}: {name} is {value!r} ({type(value).__name__}), expected {hint.__name__}.")
