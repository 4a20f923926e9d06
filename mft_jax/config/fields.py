"""All settings, as frozen dataclasses.

The docstring of a field is its help text in the command. Its type annotation holds its limits, and whether it may
change when a run is resumed (`Change`).
"""

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
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # in Phi-3
MATH_LEVELS = range(1, 6)
DIVERSITY = ("nll", "embedding", "kl")
ADDITION_DIGITS = range(1, 10)

Dtype = Literal["float32", "bfloat16"]
AutoDtype = Literal["auto", "float32", "bfloat16"]
Speakers = Literal["own", "swapped", "first"]
Target = Annotated[str, one_of(*TARGETS, *FUSED)]
LearningRate = Annotated[float, above(0), at_most(1000)]
# With a temperature near 0, logits / temperature overflows float32.
Temperature = Annotated[float, zero_or(at_least(0.001)), at_most(100)]
Coefficient = Annotated[float, at_least(0), at_most(1000)]


# What the backward pass recomputes: nothing, the activations of each layer, or these without what devices have summed up.
Remat = bool | Literal["all but sums"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    path: str | None = None
    """Checkpoint directory or hub name of the base model; None: the small model in the package."""
    param_dtype: AutoDtype = "auto"
    """Dtype of the frozen base weights; auto: bfloat16 on accelerators, that of the checkpoint on CPUs."""
    compute_dtype: AutoDtype = "auto"
    """Dtype of activations and of the KV cache; auto: bfloat16 on accelerators, float32 on CPUs."""
    chat_template: str | None = None
    """File with a Jinja chat template; None: the template of the checkpoint."""
    thinking: bool = False
    """Whether reasoning models (Qwen3) think before each answer; this needs a large sampling.max_new_tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: Count = 16
    """Rank R of every adapter."""
    alpha: Annotated[float, above(0), at_most(1_000_000)] = 32.0
    """The output of an adapter is scaled by alpha / rank."""
    targets: Annotated[tuple[Target, ...], at_least_one("layer"), WITHOUT_REPETITION] = TARGETS
    """Linear layers that get adapters; if a model fuses several into one (Phi-3), the fused layer gets one."""
    dtype: Dtype = "float32"
    """Dtype of adapters and optimizer state."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str = "arithmetic"
    """arithmetic, addition, gsm8k, math, mmlu, or jsonl for your own questions."""
    train_questions: Annotated[int, at_least(0), at_most(10**9)] = 500  # 0: an evaluation without training
    """Number of questions whose debates are the training data; only the method star uses their gold answers for it."""
    eval_questions: Count = 500
    """Number of held-out questions."""
    validation: bool = False
    """To choose settings: evaluate on training questions that are not trained on, instead of on held-out questions."""
    train_path: str | None = None
    """jsonl only: file, or gs:// object, of {"question", "answer"} lines to train on; "answer" may be absent."""
    eval_path: str | None = None
    """jsonl only: file, or gs:// object, to evaluate on; None: held-out questions of train_path."""
    data_dir: Annotated[str | None, Change.PLACE] = None
    """gsm8k, math and mmlu only: directory, or gs:// folder, of the original files; None: they are downloaded."""
    cache_dir: Annotated[str | None, Change.PLACE] = None
    """Directory of prepared data sets; None: the user's cache directory."""
    math_levels: Annotated[
        tuple[Annotated[int, within(MATH_LEVELS)], ...], at_least_one("level"), WITHOUT_REPETITION
    ] = (1, 2, 3)
    """math only: the difficulty levels, from 1 to 5, of the questions."""
    addition_digits: Annotated[int, within(ADDITION_DIGITS)] = 2
    """addition only: number of digits of each of the two numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebateConfig:
    agents: Count = 3
    """N: number of agents in a debate. Multiagent finetuning has N generators and N critics."""
    rounds: Count = 2
    """M: number of rounds; in each round after the first, an agent is shown the other agents' answers."""
    stop_at_agreement: Literal["never", "training", "evaluation", "always"] = "never"
    """Which debates end after the first round in which all agents agree: those on training or evaluation questions."""
    shows: Literal["summary", "answers", "nothing"] = "summary"
    """What agents are shown before rounds 2..M: a summary of the others' answers, these answers, or nothing."""
    summarizer: Literal["base", "speaker"] = "base"
    """Who writes an agent's summaries: the base model, or the model that speaks for the agent in the coming round."""
    voted: Literal["last", "all"] = "last"
    """The answers that are voted on: those of the last round, or those of all rounds."""
    ties: Literal["random", "largest", "none"] = "random"
    """How a tied vote is decided: at random, or for the lexicographically largest text; none: it gives no answer."""
    training_temperature: Temperature | None = None
    """Temperature of the training debates of the finetuned method; None: sampling.temperature."""
    evaluation_temperature: Temperature | None = None
    """Temperature of the evaluations of the finetuned method; None: sampling.temperature."""
    evaluation_speakers: Speakers = "own"
    """Adapters in evaluations. own: the method's; swapped: the last round's first, then round 1's; first: agent 1's for all."""
    samples: Count | None = None
    """Answers to each training question in scpo, ttrl and evol; None: debate.agents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: Temperature = 1.0
    """Sampling temperature; 0: greedy decoding."""
    top_p: Annotated[float, above(0), at_most(1)] = 0.9
    """Nucleus: the smallest set of tokens with at least this total probability; only these are sampled."""
    max_new_tokens: Count = 128
    """Maximum length of an answer or a summary, in tokens."""
    rows: Annotated[Count, Change.ANY_TIME] = 64
    """B: number of sequences decoded together for each agent; finished ones are replaced. At most chunk_questions are used."""
    prefill_rows: Annotated[Count, Change.ANY_TIME] = 16
    """Number of prompts prefilled together for each agent."""
    steps_per_dispatch: Annotated[Count, Change.ANY_TIME] = 32
    """Maximum number of tokens decoded per row in one compiled call; finished sequences are replaced between calls."""
    chunk_questions: Annotated[Count, Change.ANY_TIME] = 100
    """Number of questions debated between two saves; a run that is killed repeats at most this many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleConfig:
    learning_rate: Annotated[LearningRate, Change.NEXT_STEP] = 1e-3
    """Peak learning rate of the schedule."""
    epochs: Count = 2
    """Number of passes over the training set of an agent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig(RoleConfig):
    learning_rate: Annotated[LearningRate, Change.NEXT_STEP] = 1e-4
    """Peak learning rate of the schedule."""
    epochs: Count = 1
    """Number of passes over the pairs of an agent."""
    beta: Annotated[float, above(0), at_most(1000)] = 0.1
    """Strength of the preference: a smaller beta lets agents move further from the reference."""
    reference: Literal["start", "base"] = "start"
    """The reference: each agent as it is before the finetuning of an iteration, or the base model."""
    winner_nll: Coefficient | None = None
    """Weight of the likelihood of the preferred answer, per token, beside the preference; None: 1 for scpo, else 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(RoleConfig):
    learning_rate: Annotated[LearningRate, Change.NEXT_STEP] = 1e-4
    """Peak learning rate of the schedule."""
    epochs: Count = 1
    """Number of passes over the answers of an agent."""
    clip_low: Share = 0.2
    """The ratio of new to old probabilities is clipped to at least 1 - clip_low."""
    clip_high: Coefficient | None = None
    """The ratio of new to old probabilities is clipped to at most 1 + clip_high; None: 0.28 for evol, else 0.2."""
    kl: Coefficient = 0.0
    """Weight of the KL divergence (nats per token) from the reference."""
    entropy: Coefficient | None = None
    """Weight of the entropy bonus (nats per token); None: 0.003 for evol, else 0."""
    reference: Literal["start", "base"] = "base"
    """The reference of the divergence: each agent as it is before the finetuning of an iteration, or the base model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    generator: RoleConfig = RoleConfig()
    """The agents that give the first answer, and all other agents that learn by likelihood, except critics."""
    critic: RoleConfig = RoleConfig()
    """The agents that give the later answers."""
    preference: PreferenceConfig = PreferenceConfig()
    """The agents of methods that learn preferences: maca, maca_kto, maca_single, scpo."""
    policy: PolicyConfig = PolicyConfig()
    """The agents of methods with a policy gradient: maca_grpo, ttrl, evol, dte."""
    min_vote_share: Share | None = None
    """Learn only where at least this share of the agents' last answers agrees with the vote; None: 0.5 for scpo, else 0."""
    batch_rows: Count = 4
    """B: number of packed rows in a batch of one agent."""
    row_tokens: Count = 512
    """T: number of tokens in a packed row; longer examples (a dialogue, or a pair together) are left out and reported."""
    warmup: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.03
    """Share of an agent's steps with linear warmup of the learning rate; a cosine decay to 0 follows."""
    weight_decay: Annotated[float, at_least(0), at_most(1000), Change.NEXT_STEP] = 0.0
    """AdamW's decoupled weight decay."""
    beta1: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Annotated[float, at_least(0), below(1), Change.NEXT_STEP] = 0.999
    """AdamW's decay rate of the second moment."""
    # A device without subnormal numbers rounds smaller values to 0, and the update of an unused weight is then 0 / 0.
    eps: Annotated[float, at_least(1e-30), at_most(1), Change.NEXT_STEP] = 1e-8
    """AdamW's epsilon, which prevents a division by 0."""
    clip_norm: Annotated[float, above(0), Change.NEXT_STEP] = 1.0
    """Maximum norm of the gradient of an agent; a larger gradient is scaled down to it."""
    critic_mix: Share = 0.5
    """w: share of corrected dialogues (first answer against the vote, last with it); for critic_rule share and weighted."""
    critic_rule: Literal["all", "share", "released_code", "weighted"] = "all"
    """Dialogues of a critic: all; share: mixed by critic_mix; weighted: all, weighted by it; released_code: the paper's code."""
    critic_answers: Literal["last", "agreeing", "all"] = "last"
    """The answers of its dialogues that a critic learns: the last one, those that agree with the vote, or all."""
    critic_support: Share = 0.5
    """Critics learn only where more than this share of the answers of all rounds agrees with the vote; 0: everywhere."""
    final_turn_only: bool = False
    """Learn only the last answer of each dialogue: critics, and the agents of methods that learn whole dialogues."""
    restart_from_base: bool = False
    """Start each iteration from the initial adapters of the run instead of those of the previous iteration."""
    save_every: Annotated[Count, Change.ANY_TIME] = 50
    """Number of optimizer steps between two checkpoints of an iteration."""
    agents_at_once: Annotated[Count | None, Change.ANY_TIME] = None
    """Agents whose gradients a device computes together; fewer need less memory. None: one on CPUs, else all."""
    remat: Annotated[bool, Change.ANY_TIME] = False
    """Recompute activations in the backward pass: a third more work, and less memory except on CPUs."""
    keep_sums: Annotated[bool, Change.ANY_TIME] = False
    """With remat and mesh.model on TPUs: keep what chips summed up for attention. A sum less, twice the memory of remat."""

    @property
    def recomputed(self) -> Remat:
        """What the backward pass recomputes."""
        return "all but sums" if self.remat and self.keep_sums else self.remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    weight: Annotated[float, above(0), at_most(1000), Change.NEXT_ITERATION] = 1.0
    """How much a question with a person's verdict counts in training; other questions count 1. See `mft review`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    diversity: Annotated[tuple[Annotated[str, one_of(*DIVERSITY)], ...], WITHOUT_REPETITION, Change.GROW] = ()
    """Measures of diversity besides consensus: nll, embedding, kl. Every evaluation takes longer with them."""
    diversity_questions: Annotated[Count, Change.GROW] = 100
    """Number of evaluation questions on which they are measured: the first ones, or all if there are fewer."""
    encoder: str | None = None
    """For embedding: a sentence-transformers model; None: mean states of the base model's last layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    tensorboard: Annotated[bool, Change.ANY_TIME] = False
    """Write the metrics for TensorBoard too, below RUN_DIR/tensorboard; needs the extra `tensorboard`."""
    wandb: Annotated[Literal["off", "offline", "online"], Change.ANY_TIME] = "off"
    """Log to Weights & Biases: online, or offline into RUN_DIR/wandb for `wandb sync`; needs the extra `wandb`."""
    wandb_project: Annotated[str, Change.ANY_TIME] = "mft_jax"
    """Project of the runs in Weights & Biases."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    agent: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which agents are split; it must divide debate.agents."""
    data: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which rows are split; must divide rows, prefill_rows and batch_rows."""
    model: Annotated[Count, Change.ANY_TIME] = 1
    """Number of devices over which the weights are split."""
    auto: Annotated[bool, Change.ANY_TIME] = False
    """Choose the axes when a run starts, unless one is set to more than 1: the fastest mesh of all devices that fits them."""

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.agent * self.data * self.model

    @property
    def is_open(self) -> bool:
        """Whether the axes are still to be chosen."""
        return self.auto and self.devices == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    run_dir: Annotated[str, Change.PLACE] = "runs/experiment"
    """Directory of the run, local or gs://BUCKET/PATH; if it contains an unfinished run, that run is resumed."""
    seed: Seed = 0
    """Random seed of the choice of questions, sampling, new adapters and the order of training data."""
    iterations: Annotated[Count, Change.GROW] = 1
    """L: number of iterations of debate and finetuning. It can be increased after a run has finished."""
    method: str = "multiagent_ft"
    """The method to run; see mft_jax.methods. module:function runs a method of your own."""
    baselines: Annotated[tuple[str, ...], WITHOUT_REPETITION, Change.GROW] = ("base", "majority", "debate")
    """Methods without finetuning that are evaluated first; see mft_jax.methods. More can be added later."""
    stop_when_collapsing: bool = False
    """End the run after an iteration in which the society collapses, judged without gold answers; see results.json."""
    model: ModelSource = ModelSource()
    """The frozen base model that all agents share."""
    lora: LoraConfig = LoraConfig()
    """The LoRA adapters of the agents."""
    task: TaskConfig = TaskConfig()
    """The questions that the agents answer."""
    debate: DebateConfig = DebateConfig()
    """The numbers of agents and rounds, and the rules of debates."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are sampled, and how many at once."""
    finetuning: FinetuningConfig = FinetuningConfig()
    """How the agents are finetuned on their debates."""
    feedback: FeedbackConfig = FeedbackConfig()
    """How verdicts of people, in feedback.jsonl in the directory of the run, count in training."""
    metrics: MetricsConfig = MetricsConfig()
    """What is measured besides accuracy and consensus."""
    logging: LoggingConfig = LoggingConfig()
    """Where metrics are shown besides the files of the run."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh; the number of devices is agent x data x model."""
