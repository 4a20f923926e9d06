"""Rough figures of the programs without compiling them, to choose what `mft plan --fit` compiles.

Memory traffic, FLOPs and collectives are those that the algorithm needs. The temporary arrays are fitted to what the TPU
compiler needed for models of 4 to 8 billion parameters.
"""

import dataclasses

from mft_jax.config import FinetuningConfig
from mft_jax.models.config import ModelConfig
from mft_jax.plan.cases import ADAPTERS, CACHE, OPTIMIZER, WEIGHTS
from mft_jax.plan.counting import Counts, Speeds
from mft_jax.plan.figures import OTHER, TEMPORARIES, Figures


@dataclasses.dataclass(frozen=True)
class Shares:
    """What one device of a mesh holds, in bytes, and how many devices share what."""

    weights: float
    adapter: float  # one adapter, in the dtype of finetuning
    lane: float  # one adapter, in the dtype of the activations
    row: float  # the cache of one row of one lane, for one column, over all layers
    agent: int  # devices of each axis of the mesh
    data: int
    model: int


@dataclasses.dataclass(frozen=True)
class Rough:
    """Estimates the figures of one model on one mesh."""

    model: ModelConfig
    parameters: int  # in the matmuls of all layers
    shares: Shares
    speeds: Speeds

    def decode(self, lanes: int, rows: int, columns: int) -> Figures:
        """One token of every row: the weights, the adapters and the cache are read once."""
        tokens = lanes * rows / (self.shares.agent * self.shares.data)
        memory = self._sampling_memory(lanes, rows, columns)
        memory[TEMPORARIES] = 4.0 * tokens * self.model.vocab_size / self.shares.model
        head = 2 * tokens * self.model.embed * self.model.vocab_size / self.shares.model
        moved = memory[WEIGHTS] + memory[ADAPTERS] + memory[CACHE]
        return Figures(self._counts(tokens, 2, moved, head), memory, 0.0)

    def prefill(self, lanes: int, rows: int, columns: int, prompts: int, length: int) -> Figures:
        tokens = lanes * prompts * length / (self.shares.agent * self.shares.data)
        memory = self._sampling_memory(lanes, rows, columns)
        memory[TEMPORARIES] = 12.0 * tokens * self.model.embed
        return Figures(self._counts(tokens, 2, memory[WEIGHTS] + 30 * tokens * self.model.embed, 0), memory, 0.0)

    def train(self, adapters: int, tuning: FinetuningConfig, targets: int) -> Figures:
        """Without remat the activations of every layer are kept, with it those between the layers and of one layer.

        With `keep_sums`, those after attention in each layer too.
        """
        model, shares = self.model, self.shares
        own = adapters // shares.agent if adapters % shares.agent == 0 else adapters
        at_once = min(tuning.agents_at_once or own, own)
        tokens = own * tuning.batch_rows / shares.data * tuning.row_tokens
        layer = 12 * model.embed + 20 * model.ffw / shares.model  # bytes for each token
        between = (2 if tuning.keep_sums else 1) * 2 * model.embed * model.layers
        kept = between + 1.5 * layer if tuning.remat else layer * model.layers
        memory = {
            WEIGHTS: shares.weights,
            ADAPTERS: own * shares.adapter,
            OPTIMIZER: 2 * own * shares.adapter,
            OTHER: 0.0,
            TEMPORARIES: tokens / own * at_once * kept,
        }
        head = 4 * own * tuning.batch_rows / shares.data * targets * model.embed * model.vocab_size / shares.model
        passes = 6 if tuning.remat else 4
        moved = shares.weights * 3 * own / at_once + 2 * tokens * layer * model.layers
        return Figures(self._counts(tokens, passes, moved, head), memory, 0.0)

    def _sampling_memory(self, lanes: int, rows: int, columns: int) -> dict[str, float]:
        own = lanes / self.shares.agent
        cache = own * rows / self.shares.data * columns * self.shares.row
        return {WEIGHTS: self.shares.weights, ADAPTERS: own * self.shares.lane, CACHE: cache, OTHER: 0.0}

    def _counts(self, tokens: float, passes: int, moved: float, head: float) -> Counts:
        """`passes` FLOPs for each parameter and token, and two all-reduces of the hidden states in a layer forward."""
        split, model = self.shares.model, self.model
        flops = passes * tokens * self.parameters / split + head
        sent = 2 * (split - 1) / split * 2 * model.layers * (passes // 2) * tokens * 2 * model.embed
        links = max(
            sent / self.speeds.link_bytes, (split > 1) * 2 * model.layers * 2 * (split - 1) * self.speeds.hop_seconds
        )
        compute = flops / self.speeds.flops
        seconds = max(compute, moved / self.speeds.memory_bytes) + links
        return Counts(
            flops=flops, bytes_read=moved, sent={"all-reduce": sent}, seconds=seconds, compute_seconds=compute,
            link_seconds=links,
        )  # fmt: skip
