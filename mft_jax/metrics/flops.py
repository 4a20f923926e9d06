"""FLOPs of sampling and finetuning, computed from shapes. A multiply-add counts as two.

The forward pass of one token costs the following. `context` is the number of tokens it attends to, itself included,
summed over the layers; a layer with a sliding window attends to at most that many tokens.
  2 P + 2 P_lora      P, P_lora: parameters in the matmuls of the base and of the adapter
  4 H N context       attention: queries times keys, and weights times values
  2 D V               only for tokens whose logits are computed
The base is frozen in finetuning, so its matmuls have no weight gradient. Forward and backward of one token cost:
  4 P                 forward, and gradient of the activations
  6 P_lora            forward, gradient of the activations, and gradient of the adapter
  12 H N context      forward, and twice as much backward
  4 D V               only for targets: forward, and gradient of the hidden state
Not counted: padding, recomputation (remat) and masked attention scores, which the algorithm does not need; and norms,
rotary embedding, softmax, activation functions and the optimizer, which take less than one percent in models of
realistic size. Counted for every text, although the sampler may compute it once for several: prompts, and prefixes that
prompts share. So the cost of a method does not depend on what is sampled together.
All counts are Python ints, so they are exact and sums do not depend on the order.
"""

from collections.abc import Iterable

from mft_jax.config import LoraConfig
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import projection_shapes


def matmul_parameters(model: ModelConfig) -> int:
    """P: the number of weights in the linear layers of all blocks, without the embedding and the lm_head."""
    return model.layers * sum(size_in * size_out for size_in, size_out in projection_shapes(model).values())


def lora_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """P_lora: the number of parameters of one adapter, over all layers."""
    shapes = projection_shapes(model)
    return model.layers * lora.rank * sum(sum(shapes[target]) for target in lora.targets)


def attended(length: int, cached: int = 0, window: int | None = None) -> int:
    """The number of attended tokens in one layer, summed over the positions cached..length-1 of a causal sequence.

    Each position attends to itself and all tokens before it, or with a window to the last `window` of these.
    """
    return _attended_up_to(length, window) - _attended_up_to(cached, window)


def context_of(model: ModelConfig, length: int, cached: int = 0) -> int:
    """`attended`, summed over the layers of a model, each with its own window."""
    return sum(attended(length, cached, window) for window in model.windows)


def _attended_up_to(length: int, window: int | None) -> int:
    """The number of attended tokens, summed over the positions 0..length-1."""
    growing = length if window is None else min(length, window)
    return growing * (growing + 1) // 2 + (length - growing) * (window or 0)


def forward_flops(model: ModelConfig, lora: LoraConfig | None, *, tokens: int, context: int, logits: int) -> int:
    """FLOPs of a forward pass over `tokens` tokens, with logits for `logits` of them.

    `context` is the number of attended tokens, summed over these tokens and over the layers (`context_of`). `lora` None
    means the base model without an adapter.
    """
    parameters = matmul_parameters(model) + (0 if lora is None else lora_parameters(model, lora))
    attention = 4 * model.head_dim * model.heads * context
    return 2 * parameters * tokens + attention + 2 * model.embed * model.vocab_size * logits


def sampling_flops(
    model: ModelConfig, lora: LoraConfig | None, *, prompt_tokens: int, new_tokens: int, cached_tokens: int = 0
) -> int:
    """FLOPs of sampling `new_tokens` tokens after a prompt of `prompt_tokens` tokens.

    The first `cached_tokens` tokens of the prompt are in the KV cache already. The last sampled token is not
    fed to the model, so `prompt_tokens + new_tokens - 1 - cached_tokens` tokens are.
    """
    if new_tokens == 0:
        return 0
    length = prompt_tokens + new_tokens - 1
    context = context_of(model, length, cached_tokens)
    return forward_flops(model, lora, tokens=length - cached_tokens, context=context, logits=new_tokens)


def training_flops(model: ModelConfig, lora: LoraConfig, *, lengths: Iterable[int], targets: int) -> int:
    """FLOPs of training one adapter once on dialogues of `lengths` tokens, with `targets` targets in total."""
    lengths = list(lengths)
    tokens, context = sum(lengths), sum(context_of(model, length) for length in lengths)
    matmuls = (4 * matmul_parameters(model) + 6 * lora_parameters(model, lora)) * tokens
    attention = 12 * model.head_dim * model.heads * context
    return matmuls + attention + 4 * model.embed * model.vocab_size * targets
