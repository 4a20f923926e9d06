"""The stage that measures the diversity of a society on its evaluation transcripts (section 3 of arXiv 2501.05707).

nll: negative log-likelihood per token of an agent's final answer, in its own context, under another agent.
embedding: dissimilarity of the texts of those final answers that equal the majority answer.
kl: divergence between the agents, and of each agent from the base model, at the tokens of an agent's final answer.
Each is averaged over all pairs of agents, and the divergence from the base model over the agents. An agent is represented
by the adapter that speaks for it in the last round.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mft_jax.config import ExperimentConfig
from mft_jax.debate import AgentTranscript, Transcript
from mft_jax.errors import UserError
from mft_jax.methods import Method
from mft_jax.metrics.diversity import embedding_dissimilarity, mean_over_pairs
from mft_jax.metrics.ledger import Cost
from mft_jax.models.encoder import Encoder, load_encoder
from mft_jax.models.society import Society
from mft_jax.parallel.memory import peak_memory
from mft_jax.report.progress import Reporter
from mft_jax.runs.stage_file import StageFile
from mft_jax.sampling import ComparedText, Text, compare_speakers, score_texts
from mft_jax.session import Session
from mft_jax.setup import Setup

BASE_STATES = "mean states of the base model"  # the encoder if metrics.encoder is not set


def check_diversity(config: ExperimentConfig, method: Method) -> None:
    """Raises UserError if measures are asked for that compare agents, and the method answers with a single one."""
    if config.metrics.diversity and method.evaluation.agents == 1:
        raise UserError(
            f"metrics.diversity is {', '.join(config.metrics.diversity)}, which compare agents, but {method.name} answers "
            "with one agent: leave metrics.diversity out, or use a method with several agents."
        )


@dataclasses.dataclass(frozen=True)
class DiversityStage:
    """What the measures need: the society, and which of its adapters speaks for each agent in the last round."""

    setup: Setup
    society: Society
    speakers: tuple[str | None, ...]  # [N]
    reporter: Reporter

    def run(self, measure: str, transcripts: Sequence[Transcript], file: StageFile, title: str) -> None:
        """Measures the first `metrics.diversity_questions` transcripts. Chunks that are in `file` are not repeated."""
        settings, mesh = self.setup.config.metrics, self.setup.session.mesh
        total = min(settings.diversity_questions, len(transcripts))
        missing = file.missing(total, self.setup.config.sampling.chunk_questions)
        if missing:
            values = self._measure(measure)
            with self.reporter.stage(f"{title}: {measure}", total, "questions", done=file.done) as stage:
                for part in missing:
                    own, started = transcripts[part.start : part.stop], time.perf_counter()
                    records = zip(own, values(own), strict=True)
                    lines = [json.dumps({"id": transcript.id, **value}) for transcript, value in records]
                    seconds, memory = time.perf_counter() - started, peak_memory(mesh)
                    file.commit(part.start, lines, Cost(wall_seconds=seconds, peak_memory_bytes=memory), {})
                    stage.advance(len(part), 0)
        file.seal(total)

    def _measure(self, measure: str) -> Callable[[Sequence[Transcript]], list[dict[str, Any]]]:
        """The function that gives the values of a measure for each transcript."""
        if measure == "embedding":
            name = self.setup.config.metrics.encoder
            encoder = load_encoder(name) if name else base_encoder(self.setup.session)
            return lambda transcripts: self._embedding(transcripts, encoder, name or BASE_STATES)
        return {"nll": self._nll, "kl": self._kl}[measure]

    def _nll(self, transcripts: Sequence[Transcript]) -> list[dict[str, Any]]:
        answers, session = self._final_answers(transcripts), self.setup.session
        judges = list(dict.fromkeys(self.speakers))
        texts = [Text(judge, answer.ids.tolist()) for answer in answers for judge in judges]
        scores = iter(score_texts(session.programs, session.base, texts, self.society))
        values = self._nothing(transcripts)  # [questions, judge, author]
        for answer in answers:
            found = {judge: -float(next(scores).log_probs[answer.mask].mean()) for judge in judges}
            values[answer.question, :, answer.agent] = [found[name] for name in self.speakers]
        return [{"nll": mean_over_pairs(matrix)} for matrix in values]

    def _kl(self, transcripts: Sequence[Transcript]) -> list[dict[str, Any]]:
        answers, session = self._final_answers(transcripts), self.setup.session
        others = list(dict.fromkeys((*self.speakers, None)))
        texts = [ComparedText(self.speakers[own.agent], other, own.ids.tolist()) for own in answers for other in others]
        if not self.society.names:  # the base model speaks for all agents
            texts = [dataclasses.replace(text, speaker=None, other=None) for text in texts]
        divergences = iter(compare_speakers(session.programs, session.base, texts, self.society))
        values, to_base = self._nothing(transcripts), self._nothing(transcripts)[:, 0]
        for answer in answers:
            found = {other: float(next(divergences)[answer.mask].mean()) for other in others}
            values[answer.question, :, answer.agent] = [found[name] for name in self.speakers]
            to_base[answer.question, answer.agent] = found[None]
        mean = lambda row: None if np.isnan(row).all() else float(np.nanmean(row))
        return [
            {"kl": mean_over_pairs(matrix), "kl_to_base": mean(row)}
            for matrix, row in zip(values, to_base, strict=True)
        ]

    def _embedding(self, transcripts: Sequence[Transcript], encoder: Encoder, name: str) -> list[dict[str, Any]]:
        agreeing = [[own for own in line.agents if self._agrees(own, line.vote)] for line in transcripts]
        texts = [[own.messages[-1]["content"] for own in agents] for agents in agreeing]
        embeddings = iter(encoder([text for own in texts for text in own]))
        stacked = [np.array([next(embeddings) for _ in own]) for own in texts]
        return [{"embedding": embedding_dissimilarity(own), "encoder": name} for own in stacked]

    def _agrees(self, agent: AgentTranscript, vote: str | None) -> bool:
        answer = agent.answers[-1]
        return answer is not None and vote is not None and self.setup.equivalent(answer, vote)

    def _nothing(self, transcripts: Sequence[Transcript]) -> np.ndarray:
        return np.full((len(transcripts), len(self.speakers), len(self.speakers)), np.nan)

    def _final_answers(self, transcripts: Sequence[Transcript]) -> list["FinalAnswer"]:
        """The last answers of all agents that gave one in the last round."""
        chat, longest = self.setup.session.chat, self.setup.session.model.max_positions
        places = [
            (question, agent, own)
            for question, transcript in enumerate(transcripts)
            for agent, own in enumerate(transcript.agents)
            if own.turns[-1].end != "unanswerable"
        ]
        answers = []
        encoded = chat.all_examples([(own.messages, [-1]) for *_, own in places])
        for (question, agent, _), pairs in zip(places, encoded, strict=True):
            ids, mask = pairs[-1]
            ids, mask = ids[:longest], mask[:longest]  # the template may end a cut answer with one more token
            if mask[1:].any():
                answers.append(FinalAnswer(question, agent, ids, mask))
        return answers


@dataclasses.dataclass(frozen=True)
class FinalAnswer:
    """The last answer of an agent, in its own dialogue."""

    question: int  # index of the transcript
    agent: int  # from 0
    ids: np.ndarray  # [T]: the whole dialogue
    mask: np.ndarray  # [T]: True for the tokens of the answer


def base_encoder(session: Session) -> Encoder:
    """The encoder that embeds a text as the mean of the base model's states after its last norm, over the tokens of the text."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        longest = session.model.max_positions
        ids = [session.chat.tokenizer(text, add_special_tokens=False)["input_ids"][:longest] for text in texts]
        scores = score_texts(session.programs, session.base, [Text(None, own) for own in ids])
        return np.array([score.pooled for score in scores])

    return encode
