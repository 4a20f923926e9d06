"""The cost of stages in tokens and FLOPs, from the sampled rows and the trained examples."""

from collections.abc import Iterable

from mft_jax.config import LoraConfig
from mft_jax.finetuning.packing import Plan
from mft_jax.metrics.flops import context_of, forward_flops, sampling_flops, training_flops
from mft_jax.metrics.ledger import Cost
from mft_jax.models.config import ModelConfig
from mft_jax.sampling import Text, Usage


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


def scoring_cost(texts: Iterable[Text], model: ModelConfig, lora: LoraConfig) -> Cost:
    """The cost of scoring texts once; their tokens count as prompt tokens. The times in it are 0."""
    cost = Cost()
    for text in texts:
        length, adapter = len(text.tokens), None if text.speaker is None else lora
        flops = forward_flops(model, adapter, tokens=length, context=context_of(model, length), logits=length)
        cost += Cost(prompt_tokens=length, flops=flops)
    return cost


def finetuning_cost(plan: Plan, start: int, end: int, model: ModelConfig, lora: LoraConfig) -> Cost:
    """The cost of the optimizer steps start..end-1 of a plan, over all adapters.

    The times in it are 0; the caller measures them.
    """
    cost = Cost()
    for own in plan.adapters:
        rows = [row for step in range(start, min(end, own.steps)) for row in own.rows_of(step)]
        parts = [own.parts[index] for row in rows for index in row]
        lengths, targets = [len(part.encoded[0]) for part in parts], sum(part.targets for part in parts)
        flops = training_flops(model, lora, lengths=lengths, targets=targets)
        cost += Cost(train_tokens=sum(lengths), flops=flops)
    return cost
