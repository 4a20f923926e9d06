"""Makes the training sets of an iteration from its debates: selection, and the scores that an objective needs."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mft_jax.debate import Transcript
from mft_jax.finetuning import Example, Ruling, add_log_probs, select_examples
from mft_jax.metrics.costs import scoring_cost
from mft_jax.metrics.ledger import Cost
from mft_jax.models.society import Society
from mft_jax.programs.program import BusyClock
from mft_jax.prompts import Message
from mft_jax.sampling import Score, Text, score_texts
from mft_jax.setup import Setup


class TrainingData:
    """Selects and scores the examples of all adapters of a method. `cost` is what the scoring has cost so far."""

    def __init__(self, setup: Setup):
        self.setup, self.cost = setup, Cost()

    def make(
        self,
        transcripts: Sequence[Transcript],
        iteration: int,
        *,
        sampled: Society,
        start: Society,
        rulings: Mapping[str, Ruling] | None = None,
        weight: float = 1.0,
    ) -> dict[str, list[Example]]:
        """The training sets {adapter: examples}: the same for the same arguments.

        `sampled` is the society that debated, `start` the one that the finetuning of this iteration starts from.
        `rulings` and `weight` are as in `select_examples`.
        """
        setup, tuning = self.setup, self.setup.config.finetuning
        sets = select_examples(
            setup.method.lessons, transcripts, setup.equivalent, seed=setup.config.seed, iteration=iteration,
            embed=self._embed, rulings=rulings, weight=weight, ties=setup.method.protocol.ties,
            voted=setup.method.protocol.voted,
        )  # fmt: skip
        return add_log_probs(
            sets, setup.method.objective, self._score, chat=setup.session.chat, row_tokens=tuning.row_tokens,
            sampled=sampled, start=start,
        )  # fmt: skip

    def _embed(self, dialogues: Sequence[Sequence[Message]]) -> Float[np.ndarray, "n D"]:
        """The mean hidden states of the base model over the assistant's tokens of each dialogue."""
        encoded = [self.setup.session.chat.example(messages) for messages in dialogues]
        texts = [Text(None, ids.tolist(), mask.tolist()) for ids, mask in encoded]
        return np.array([score.pooled for score in self._score(texts, Society())])

    def _score(self, texts: Sequence[Text], society: Society) -> list[Score]:
        session, config = self.setup.session, self.setup.config
        began, clock = time.perf_counter(), BusyClock(session.programs)
        clock.start()
        scores = score_texts(session.programs, session.base, texts, society, rows=config.finetuning.batch_rows)
        clock.stop()
        self.cost += scoring_cost(texts, session.model, config.lora) + Cost(
            device_seconds=clock.seconds * session.mesh.size, wall_seconds=time.perf_counter() - began
        )
        return scores
