"""Training sets from debates (paper.md section 1, items 3 and 4): what each agent said, kept where the final vote agrees.

Gold labels are never read. An example is a dialogue of one agent, {"id", "messages", "kind"}, a JSON line in the run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

import numpy as np

from mft_jax.config import FinetuningConfig, RoleConfig
from mft_jax.debate.transcript import Transcript
from mft_jax.prompts import Message

Equivalent = Callable[[str, str], bool]  # a task's comparison of two parsed answers
Kind = Literal["first", "corrected", "kept"]
MIX, PACK = 0, 1  # streams of random numbers, so that choosing examples and shuffling them never share one


class Example(TypedDict):
    """One dialogue to learn from."""

    id: str  # of the question
    messages: list[Message]
    kind: Kind  # first: a generator's; corrected: wrong first, right last (D-); kept: right first and last (D+)


@dataclasses.dataclass(frozen=True)
class TrainingSets:
    """One list of examples for each agent; an agent whose list is empty keeps its weights."""

    generators: tuple[list[Example], ...]
    critics: tuple[list[Example], ...]
    corrected: tuple[int, ...]  # |D-| of each critic, before the mix
    kept: tuple[int, ...]  # |D+| of each critic, before the mix

    @property
    def agents(self) -> tuple[list[Example], ...]:
        """All A = 2N lists in the order of the stacked adapters: generators, then critics."""
        return self.generators + self.critics


def training_sets(
    transcripts: Sequence[Transcript], equivalent: Equivalent, config: FinetuningConfig, *, seed: int, iteration: int
) -> TrainingSets:
    """The data of one finetuning iteration, for every generator and critic, in the order of the transcripts.

    Which examples a critic's mix takes follows from (seed, iteration, agent) and that agent's own examples alone.
    """
    agents = len(transcripts[0].agents) if transcripts else 0
    generators, critics, corrected, kept = [], [], [], []
    for agent in range(agents):
        generators.append(generator_data(transcripts, agent, equivalent))
        wrong_first, right_first = critic_data(transcripts, agent, equivalent)
        rng = random_stream(seed, iteration, agent, MIX)
        critics.append(mix(wrong_first, right_first, config, rng))
        corrected.append(len(wrong_first))
        kept.append(len(right_first))
    return TrainingSets(tuple(generators), tuple(critics), tuple(corrected), tuple(kept))


def society(agents: int, config: FinetuningConfig) -> tuple[tuple[str, ...], tuple[RoleConfig, ...]]:
    """Names and role settings of A = 2N agents in the order of `TrainingSets.agents`: generator_0.. then critic_0.."""
    names = tuple(f"{role}_{agent}" for role in ("generator", "critic") for agent in range(agents))
    return names, (config.generator,) * agents + (config.critic,) * agents


def generator_data(transcripts: Sequence[Transcript], agent: int, equivalent: Equivalent) -> list[Example]:
    """(question, the agent's own first answer) wherever that answer equals the final vote (paper.md 1.3)."""
    examples = []
    for transcript in transcripts:
        said = transcript.agents[agent]
        if agrees(said.answers[0], transcript.vote, equivalent):
            examples.append(Example(id=transcript.id, messages=list(said.messages[:2]), kind="first"))
    return examples


def critic_data(
    transcripts: Sequence[Transcript], agent: int, equivalent: Equivalent
) -> tuple[list[Example], list[Example]]:
    """(D-, D+): the agent's whole dialogues whose last answer equals the vote, by whether the first did (paper.md 1.4).

    After a single round there is neither: no critic has spoken.
    """
    corrected, kept = [], []
    for transcript in transcripts:
        said = transcript.agents[agent]
        if len(said.answers) < 2 or not agrees(said.answers[-1], transcript.vote, equivalent):
            continue
        if agrees(said.answers[0], transcript.vote, equivalent):
            kept.append(Example(id=transcript.id, messages=list(said.messages), kind="kept"))
        else:
            corrected.append(Example(id=transcript.id, messages=list(said.messages), kind="corrected"))
    return corrected, kept


def mix(
    corrected: list[Example], kept: list[Example], config: FinetuningConfig, rng: np.random.Generator
) -> list[Example]:
    """A critic's data out of D- and D+.

    Rule `share`: a share w = critic_mix of D- and 1 - w of D+, and as many examples as that share allows: all of the
    side that is scarce for it, and a random part of the other. The share is kept strictly, so that w means the same in
    every run: without any D- (and w > 0) the mix is empty and the critic keeps its weights, as in the released code.
    Rule `released_code`: all of D-, and after each, with probability 1/2, one example of D+ drawn with replacement.
    """
    if config.critic_rule == "released_code":
        mixed = []
        for example in corrected:
            mixed.append(example)
            if kept and rng.random() < 0.5:
                mixed.append(kept[rng.integers(len(kept))])
        return mixed
    from_corrected, from_kept = mix_sizes(len(corrected), len(kept), config.critic_mix)
    return _choose(corrected, from_corrected, rng) + _choose(kept, from_kept, rng)


def mix_sizes(corrected: int, kept: int, share: float) -> tuple[int, int]:
    """How many of `corrected` and `kept` examples make the largest mix with `share` of corrected ones."""
    if share == 0:
        return 0, kept
    wanted = round(corrected * (1 - share) / share)
    if wanted <= kept:
        return corrected, wanted
    return min(corrected, round(kept * share / (1 - share))), kept


def agrees(answer: str | None, vote: str | None, equivalent: Equivalent) -> bool:
    """Whether an answer equals the vote; an unparsed answer agrees with nothing, and nothing with a missing vote."""
    return answer is not None and vote is not None and equivalent(answer, vote)


def random_stream(seed: int, *path: int) -> np.random.Generator:
    """Random numbers that follow from `seed` and the place they are used at, whatever was drawn elsewhere."""
    return np.random.default_rng([seed % 2**64, *path])


def _choose(examples: list[Example], count: int, rng: np.random.Generator) -> list[Example]:
    """A random `count` of the examples, in their own order."""
    return [examples[i] for i in sorted(rng.permutation(len(examples))[:count])]
