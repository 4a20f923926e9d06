"""The time of each stage of a run, from the figures of its programs. All times are estimates."""

import dataclasses
import math
from collections.abc import Sequence

from mft_jax.config import ExperimentConfig
from mft_jax.plan.cases import ADAPTERS, CACHE, WEIGHTS, Sizes
from mft_jax.plan.counting import Speeds
from mft_jax.plan.figures import Figures
from mft_jax.plan.lengths import Lengths
from mft_jax.plan.workload import DebateStage, FinetuningStage, Texts, cache_columns, padded_prompt


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """A stage of a run: its tokens, without padding, and its seconds in compiled programs."""

    name: str
    prompt_tokens: float
    new_tokens: float
    train_tokens: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Clock:
    """Times the stages of a configuration, given the figures of its programs at `sizes`."""

    config: ExperimentConfig
    lengths: Lengths
    sizes: Sizes
    speeds: Speeds
    decode: Figures
    prefill: Figures
    train: Figures | None

    def stage(self, stage: DebateStage | FinetuningStage) -> StageEstimate:
        if isinstance(stage, FinetuningStage):
            seconds = stage.steps * self.train.counts.step_seconds(self.speeds) if self.train else 0.0
            return StageEstimate(stage.name, 0, 0, stage.train_tokens, seconds)
        seconds = sum(self._texts_seconds(own, stage.questions) for own in stage.rounds)
        return StageEstimate(stage.name, stage.prompt_tokens, stage.new_tokens, 0, seconds)

    def decode_seconds(self, columns: int) -> float:
        """The time of one token of every row. The cache's share of it grows with the columns, the rest does not."""
        memory = self.decode.memory
        cache = memory.get(CACHE, 0)
        share = cache / (cache + memory.get(WEIGHTS, 0) + memory.get(ADAPTERS, 0))
        growth = 1 + share * (columns / self.sizes.columns - 1)
        return growth * self.decode.counts.step_seconds(self.speeds)

    def prefill_seconds(self, tokens: int) -> float:
        """The time of a call with prompts padded to this many tokens, in proportion to them."""
        return self.prefill.counts.step_seconds(self.speeds) * tokens / self.sizes.prompt_tokens

    def _texts_seconds(self, texts: Texts, questions: int) -> float:
        """The time to sample the texts of one round, chunk after chunk.

        A lane decodes its texts in its rows, each of which takes the next text when it is done; at the end the other rows
        wait for the longest text.
        """
        config, sizes = self.config.sampling, self.sizes
        longest = min(self.lengths.longest * texts.new, config.max_new_tokens)
        columns = cache_columns(self.lengths.longest_prompt * texts.prompt, self.config)
        total = 0.0
        for chunk in chunk_sizes(questions, config.chunk_questions):
            own = chunk * texts.per_question / sizes.lanes
            steps = max(1.0, own / sizes.rows) * texts.new + longest - texts.new
            calls = math.ceil(own / sizes.prefill_rows)
            total += steps * self.decode_seconds(columns) + calls * self.prefill_seconds(padded_prompt(texts.prompt))
        return total


def chunk_sizes(questions: int, chunk: int) -> Sequence[int]:
    """The numbers of questions that are debated together."""
    return [min(chunk, questions - start) for start in range(0, questions, chunk)]
