"""Every setting, as frozen dataclasses. The text below a field is its help; its limits, and when it may change between two
starts of one run, stand in its type."""

import dataclasses
from typing import Annotated, Literal

from mft_jax.config.changes import Change
from mft_jax.config.limits import (
    WITHOUT_REPETITION,
    Count,
    Seed,
    Share,
    above,
    at_least,
    at_least_one,
    at_most,
    below,
    one_of,
    within,
    zero_or,
)

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # Phi-3's
MATH_LEVELS = range(1, 6)
ADDITION_DIGITS = range(1, 10)

Dtype = Literal["float32", "bfloat16"]
AutoDtype = Literal["auto", "float32", "bfloat16"]
Target = Annotated[str, one_of(*TARGETS, *FUSED)]
LearningRate = Annotated[float, above(0), at_most(1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    path: str | None = None
    """Checkpoint directory or hub name of the base model; None: the small model that comes with the package."""
    param_dtype: AutoDtype = "auto"
    """Type of the frozen base's weights; auto: bfloat16 on accelerators, as the checkpoint stores them on CPUs."""
    compute_dtype: AutoDtype = "auto"
    """Type of activations and of the KV cache; auto: bfloat16 on accelerators, float32 on CPUs."""
    chat_template: str | None = None
    """File with a Jinja chat template, for a checkpoint without one, or instead of the checkpoint's own."""
    thinking: bool = False
    """Whether reasoning models (Qwen3) think before each answer; this needs a large sampling.max_new_tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: Count = 16
    """Rank R of every adapter."""
    alpha: Annotated[float, above(0), at_most(1_000_000)] = 32.0
    """What an adapter adds to a layer's output is scaled by alpha / rank."""
    targets: Annotated[tuple[Target, ...], at_least_one("layer"), WITHOUT_REPETITION] = TARGETS
    """The linear layers that get adapters; where a model fuses several of them into one (Phi-3), the fused layer."""
    dtype: Dtype = "float32"
    """Type of adapters and optimizer state."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str = "arithmetic"
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions."""
    train_questions: Annotated[int, at_least(0), at_most(10**9)] = 500  # 0: an evaluation without training
    """Number of questions that are debated to make training data; their gold answers are not used for it."""
    eval_questions: Count = 500
    """Number of held-out questions."""
    train_path: str | None = None
    """jsonl only: file of {"question", "answer"} lines to train on; "answer" may be absent."""
    eval_path: str | None = None
    """jsonl only: file to evaluate on; None: questions of train_path that are not trained on."""
    data_dir: Annotated[str | None, Change.PLACE] = None
    """gsm8k, math and mmlu only: directory with the data set's original files; None: they are downloaded."""
    cache_dir: Annotated[str | None, Change.PLACE] = None
    """Where prepared data sets are kept; None: the user's cache directory."""
    math_levels: Annotated[
        tuple[Annotated[int, within(MATH_LEVELS)], ...], at_least_one("level"), WITHOUT_REPETITION
    ] = (1, 2, 3)
    """math only: the levels of difficulty, from 1 to 5, that questions are taken from."""
    addition_digits: Annotated[int, within(ADDITION_DIGITS)] = 2
    """addition only: number of digits of each of the two numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebateConfig:
    agents: Count = 3
    """N: number of agents in a debate. Multiagent finetuning has N generators and N critics."""
    rounds: Count = 2
    """M: number of answers of each agent; before each but the first it is told what the others answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    # A temperature near 0 divides logits beyond what float32 can hold.
    temperature: Annotated[float, zero_or(at_least(0.001)), at_most(100)] = 1.0
    """0 always takes the most probable token (greedy decoding)."""
    top_p: Annotated[float, above(0), at_most(1)] = 0.9
    """Nucleus: the smallest set of tokens with this much probability is sampled from."""
    max_new_tokens: Count = 128
    """Longest answer or summary, in tokens."""
    rows: Annotated[Count, Change.ANY_TIME] = 64
    """B: sequences decoded together for each agent, at most chunk_questions; a finished one is replaced at once."""
    prefill_rows: Annotated[Count, Change.ANY_TIME] = 16
    """Number of prompts that are processed together for each agent."""
    steps_per_dispatch: Annotated[Count, Change.ANY_TIME] = 32
    """Tokens decoded in one compiled call; finished sequences are replaced between two calls."""
    chunk_questions: Annotated[Count, Change.ANY_TIME] = 100
    """Questions that are debated before their transcripts are saved: at most this many are lost when a run is killed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleConfig:
    learning_rate: Annotated[LearningRate, Change.NEXT_STEP] = 1e-3
    """Highest learning rate of the schedule."""
    epochs: Count = 2
    """Passes over the role's training set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    generator: RoleConfig = RoleConfig()
    """Agents that give the first answer."""
    critic: RoleConfig = RoleConfig()
    """Agents that give the later answers."""
    batch_rows: Count = 4
    """B: packed rows in one agent's batch."""
    row_tokens: Count = 512
    """T: tokens in a packed row; longer dialogues are not trained on, and their number is reported."""
    warmup: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.03
    """Share of an agent's steps in which its learning rate rises; then it falls to 0 along a cosine."""
    weight_decay: Annotated[float, at_least(0), at_most(1000), Change.NEXT_STEP] = 0.0
    """AdamW's decoupled weight decay."""
    beta1: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.9
    """AdamW's decay rate of the mean of gradients."""
    beta2: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.999
    """AdamW's decay rate of the mean of squared gradients."""
    # Anything smaller is 0 to a device without subnormal numbers, and then an unused weight becomes 0 / 0.
    eps: Annotated[float, at_least(1e-30), at_most(1), Change.NEXT_STEP] = 1e-8
    """AdamW's term that keeps a division by 0 away."""
    clip_norm: Annotated[float, above(0), Change.NEXT_STEP] = 1.0
    """An agent's gradient of a larger norm is scaled down to this norm."""
    critic_mix: Share = 0.5
    """w: share of corrected dialogues (first answer wrong, last one right) in a critic's data, by the rule `share`."""
    critic_rule: Literal["share", "released_code"] = "share"
    """share: by critic_mix; released_code: every corrected dialogue, and with probability 1/2 after each an always right one."""
    final_turn_only: bool = False
    """Critics learn only the last answer of a dialogue instead of all answers."""
    restart_from_base: bool = False
    """Each iteration finetunes the adapters that the run began with instead of those of the iteration before."""
    save_every: Annotated[Count, Change.ANY_TIME] = 50
    """Optimizer steps between two checkpoints of an iteration."""
    agents_at_once: Annotated[Count | None, Change.ANY_TIME] = None
    """Agents whose gradients a device computes together: fewer take less memory. None: one on CPUs, all elsewhere."""
    remat: Annotated[bool, Change.ANY_TIME] = False
    """Recompute activations in the backward pass: a third more work for less memory, though not on CPUs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    agent: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which agents are split; it divides debate.agents."""
    data: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which rows are split; it divides sampling.rows, sampling.prefill_rows, finetuning.batch_rows."""
    model: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which the weights are split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    run_dir: Annotated[str, Change.PLACE] = "runs/experiment"
    """Directory of the run; an unfinished run there is resumed."""
    seed: Seed = 0
    """Seed of the choice of questions, of sampling, of fresh adapters and of the order of training data."""
    iterations: Annotated[Count, Change.GROW] = 1
    """L: number of times that the society debates and is finetuned. A finished run can be given more."""
    method: str = "multiagent_ft"
    """Method that is finetuned and evaluated; see mft_jax.methods."""
    baselines: Annotated[tuple[str, ...], WITHOUT_REPETITION, Change.GROW] = ("base", "majority", "debate")
    """Methods without finetuning that are evaluated first; see mft_jax.methods. A finished run can be given more."""
    model: ModelSource = ModelSource()
    """The frozen base model that all agents share."""
    lora: LoraConfig = LoraConfig()
    """The adapters that make agents of the base model."""
    task: TaskConfig = TaskConfig()
    """What the agents are asked."""
    debate: DebateConfig = DebateConfig()
    """Who answers how often."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are sampled, and how much is sampled at once."""
    finetuning: FinetuningConfig = FinetuningConfig()
    """How agents learn from their debates."""
    mesh: MeshConfig = MeshConfig()
    """How the work is split over devices; their number is agent x data x model."""
