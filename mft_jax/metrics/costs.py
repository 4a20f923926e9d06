"""The cost of stages in tokens and FLOPs, from the sampled rows and the trained examples."""

from collections.abc import Iterable

from mft_jax.config import LoraConfig
from mft_jax.finetuning.packing import Plan
from mft_jax.metrics.flops import sampling_flops, training_flops
from mft_jax.metrics.ledger import Cost
from mft_jax.models.config import ModelConfig
from mft_jax.sampling import Usage


def sampling_cost(usages: Iterable[Usage], model: ModelConfig, lora: LoraConfig) -> Cost:
    """The cost of sampling. `wall_seconds` is 0; the caller measures it."""
    cost = Cost()
    for usage in usages:
        adapter = lora if usage.adapted else None
        cost += Cost(
            prompt_tokens=sum(prompt for prompt, _ in usage.lengths),
            new_tokens=sum(new for _, new in usage.lengths),
            flops=sum(sampling_flops(model, adapter, prompt_tokens=p, new_tokens=n) for p, n in usage.lengths),
            device_seconds=usage.device_seconds,
        )
    return cost


def finetuning_cost(plan: Plan, start: int, end: int, model: ModelConfig, lora: LoraConfig) -> Cost:
    """The cost of the optimizer steps start..end-1 of a plan, over all adapters.

    The times in it are 0; the caller measures them.
    """
    cost = Cost()
    for own in plan.adapters:
        rows = [row for step in range(start, min(end, own.steps)) for row in own.rows_of(step)]
        examples = [own.examples[index] for row in rows for index in row]
        lengths = [len(ids) for ids, _ in examples]
        targets = sum(int(mask[1:].sum()) for _, mask in examples)
        flops = training_flops(model, lora, lengths=lengths, targets=targets)
        cost += Cost(train_tokens=sum(lengths), flops=flops)
    return cost
