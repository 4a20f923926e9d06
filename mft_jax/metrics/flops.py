"""FLOPs from shapes alone, for the compute ledger. A multiply-add counts as two.

Forward, for a token that attends to `context` tokens, itself included, summed over the layers (a layer with a window
attends to no more than that many):
  2 P + 2 P_lora      P, P_lora: parameters in the matmuls of the base and of the adapter
  4 H N context       attention: queries times keys, weights times values
  2 D V               only where logits are computed
Finetuning keeps the base frozen, so its matmuls have no gradient of their weights:
  4 P                 forward, and backward to the activations
  6 P_lora            forward, backward to the activations and to the adapter
  12 H N context      forward, and twice that backward
  4 D V               where there is a target: forward, and backward to the hidden state
This counts what the method asks for; padding, recomputation (remat) and masked attention scores, which a program may
compute in addition, are not counted. Norms, rotary embedding, softmax, activations and the optimizer are below a percent
at any real size and left out. All counts are Python ints: exact, and equal in whatever order they are added.
"""

from collections.abc import Iterable

from mft_jax.config import LoraConfig
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import projection_shapes


def matmul_parameters(model: ModelConfig) -> int:
    """P: weights of the linear layers of all blocks; embedding and lm_head are not among them."""
    return model.layers * sum(size_in * size_out for size_in, size_out in projection_shapes(model).values())


def lora_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """P_lora: parameters of ONE adapter, over all layers."""
    shapes = projection_shapes(model)
    return model.layers * lora.rank * sum(sum(shapes[target]) for target in lora.targets)


def attended(length: int, cached: int = 0, window: int | None = None) -> int:
    """Tokens seen by one layer, summed over positions cached..length-1 of a causal sequence.

    Each position sees itself and all before it, or the last `window` tokens, itself included.
    """
    return _seen_up_to(length, window) - _seen_up_to(cached, window)


def context_of(model: ModelConfig, length: int, cached: int = 0) -> int:
    """`attended` summed over the layers of a model, each with its own window."""
    return sum(attended(length, cached, window) for window in model.windows)


def _seen_up_to(length: int, window: int | None) -> int:
    growing = length if window is None else min(length, window)
    return growing * (growing + 1) // 2 + (length - growing) * (window or 0)


def forward_flops(model: ModelConfig, lora: LoraConfig | None, *, tokens: int, context: int, logits: int) -> int:
    """A forward pass over `tokens` tokens that see `context` tokens, summed over layers, with `logits` rows of logits.

    `lora` None is the base model without an adapter.
    """
    parameters = matmul_parameters(model) + (0 if lora is None else lora_parameters(model, lora))
    attention = 4 * model.head_dim * model.heads * context
    return 2 * parameters * tokens + attention + 2 * model.embed * model.vocab_size * logits


def sampling_flops(
    model: ModelConfig, lora: LoraConfig | None, *, prompt_tokens: int, new_tokens: int, cached_tokens: int = 0
) -> int:
    """Sampling one row of `new_tokens` after a prompt of `prompt_tokens`, `cached_tokens` of which are not read again.

    The last sampled token is never read: `prompt_tokens + new_tokens - 1 - cached_tokens` tokens go through the model.
    """
    if new_tokens == 0:
        return 0
    length = prompt_tokens + new_tokens - 1
    context = context_of(model, length, cached_tokens)
    return forward_flops(model, lora, tokens=length - cached_tokens, context=context, logits=new_tokens)


def training_flops(model: ModelConfig, lora: LoraConfig, *, lengths: Iterable[int], targets: int) -> int:
    """Forward and backward of one agent, once over dialogues of `lengths` tokens, `targets` of them under the loss."""
    lengths = list(lengths)
    tokens, context = sum(lengths), sum(context_of(model, length) for length in lengths)
    matmuls = (4 * matmul_parameters(model) + 6 * lora_parameters(model, lora)) * tokens
    attention = 12 * model.head_dim * model.heads * context
    return matmuls + attention + 4 * model.embed * model.vocab_size * targets
