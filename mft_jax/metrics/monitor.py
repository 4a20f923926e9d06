"""Says without gold answers whether a society that learns from its own votes still improves, or collapses.

A majority vote can only teach what some agents say already. A society that improves therefore settles questions on which
its agents disagreed, and keeps the answers on which they all agreed. Four signs of the opposite are looked for:
1. Answers on which all agents agreed are lost, or all agents agree on answers that none of them gave before.
2. One answer wins the votes on many different questions.
3. Fewer answers can be parsed.
4. After the first iteration, fewer agents agree with the votes.
The society before is the last one that was judged to be improving, so that a slow decline adds up; the first iteration is
compared with the debate of the untuned society on the training questions. These are other questions, so only shares can
be compared.
Agreement itself is no sign: it rises while a society improves and also while it collapses.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from mft_jax.metrics.diversity import Equivalent, consensus
from mft_jax.metrics.statistics import paired_test

SIGNIFICANT = 0.01  # p value of an exact sign test below which a change is not taken for chance
CONFUSED = 0.1  # by how much the share of answers without content may rise
CONCENTRATED = 0.25  # by how much the share of the most common vote may rise
DIVIDED = 0.1  # by how much the share of agents that agree with the vote may fall, or more if it may be by chance

Verdict = Literal["improving", "stalled", "collapsing", "unknown"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signals:
    """What votes and answers say about a society without gold answers. Shares are 0..1."""

    diversity: float  # 1 - consensus
    unanimous: float  # share of questions on which all agents give the same answer in the last round
    vote_entropy: float  # of the agents' last answers to a question, in nats, mean over questions
    concentration: float  # share of questions on which the most common vote won
    flips: float  # share of agents whose last answer differs from their first
    unparsed: float  # share of last answers that are missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
    """The verdict on an iteration."""

    verdict: Verdict
    reason: str
    compared_with: int  # the iteration of the society before; 0: the untuned society
    settled: int  # questions on which the agents disagreed before, and all agree now on an answer that one of them gave
    lost: int  # questions on which all agents agreed before, and now do not, or on another answer
    invented: int  # questions on which the agents disagreed before, and all agree now on an answer that none gave
    signals: Signals

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Monitor":
        """Rebuilds a verdict from JSON. Raises TypeError or KeyError for other fields."""
        fields = dict(raw)
        fields["signals"] = Signals(**raw["signals"])
        return cls(**fields)


def read_signals(transcripts: Sequence[Mapping[str, Any]], equivalent: Equivalent) -> Signals:
    """The signals of debates, given as parsed JSON lines. Raises ValueError without transcripts."""
    last = [[agent["answers"][-1] for agent in line["agents"]] for line in transcripts]
    pairs = [(agent["answers"][0], agent["answers"][-1]) for line in transcripts for agent in line["agents"]]
    votes = collections.Counter(line["vote"] for line in transcripts if line["vote"] is not None)
    mean = lambda values: sum(values) / len(values)
    return Signals(
        diversity=1 - consensus(last, [line["vote"] for line in transcripts], equivalent),
        unanimous=mean([_agreed(line, equivalent) is not None for line in transcripts]),
        vote_entropy=mean([_entropy(_class_sizes(own, equivalent)) for own in last]),
        concentration=max(votes.values(), default=0) / len(transcripts),
        flips=mean([not _same(first, final, equivalent) for first, final in pairs]),
        unparsed=mean([answer is None for own in last for answer in own]),
    )


def watch(
    untuned: Sequence[Mapping[str, Any]], iterations: Sequence[Sequence[Mapping[str, Any]]], equivalent: Equivalent
) -> list[Monitor]:
    """The verdict on each iteration, given the transcripts of its evaluation. Gold answers are not read.

    `untuned` are the debates of the untuned society on the training questions. All iterations have the same questions in
    the same order. Raises ValueError without transcripts.
    """
    verdicts: list[Monitor] = []
    before: Sequence[Mapping[str, Any]] | None = None  # the evaluation of the last society that was improving
    number, earlier = 0, read_signals(untuned, equivalent)
    divided = bool(iterations) and _is_divided(untuned, iterations[0], equivalent)
    for iteration, transcripts in enumerate(iterations, start=1):
        signals = read_signals(transcripts, equivalent)
        changes = _count_changes(before, transcripts, equivalent) if before else None
        agents = len(transcripts[0]["agents"])
        verdict, reason = _judge(earlier, signals, changes, agents=agents, divided=divided and before is None)
        verdicts.append(
            Monitor(
                verdict=verdict, reason=reason, compared_with=number, signals=signals, **(changes or _Changes())._asdict()
            )
        )  # fmt: skip
        if verdict == "improving" or (verdict == "unknown" and changes is None and agents > 1):  # the first iteration
            before, number, earlier = transcripts, iteration, signals
    return verdicts


class _Changes(NamedTuple):
    """The counts of `Monitor`."""

    settled: int = 0
    lost: int = 0
    invented: int = 0


def _judge(
    before: Signals, now: Signals, changes: _Changes | None, *, agents: int, divided: bool
) -> tuple[Verdict, str]:
    """(verdict, reason). Of several signs, the first one is given."""
    if now.unparsed > before.unparsed + CONFUSED:
        return "collapsing", f"answers without content rose from {before.unparsed:.0%} to {now.unparsed:.0%}"
    if now.concentration > before.concentration + CONCENTRATED:
        return "collapsing", (
            f"one answer wins the vote on {now.concentration:.0%} of the questions, {before.concentration:.0%} before"
        )
    if agents == 1:
        return "unknown", "one agent alone has no agreement to watch; its answers are as varied as before"
    if divided:
        return "collapsing", (
            f"{1 - now.diversity:.0%} of the agents agree with the votes, {1 - before.diversity:.0%} of the untuned ones did"
        )
    if changes is None:
        return "unknown", "its answers are as varied as those of the untuned society; there is nothing else to compare"
    reason = (
        f"the agents settled {changes.settled} questions on which they disagreed, lost {changes.lost} on which they "
        f"agreed, and agree on {changes.invented} answers that none gave before"
    )
    losses = changes.lost + changes.invented
    if losses == changes.settled or _sign_test(changes.settled, losses) >= SIGNIFICANT:
        return "stalled", reason
    return ("improving" if changes.settled > losses else "collapsing"), reason


def _is_divided(untuned: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], equivalent: Equivalent) -> bool:
    """Whether the mean share of agents that agree with the vote has fallen by more than `DIVIDED`, and not by chance.

    The standard error of the difference is Welch's; with tens of questions its ratio is normally distributed.
    """
    shares = [
        [consensus([[own["answers"][-1] for own in line["agents"]]], [line["vote"]], equivalent) for line in lines]
        for lines in (untuned, now)
    ]
    fall = float(np.mean(shares[0]) - np.mean(shares[1]))
    # A few equal shares have no variance, but prove little. So each variance counts one more share that differs by a half.
    error = math.sqrt(sum((np.var(own) + 0.25 / len(own)) / len(own) for own in shares))
    return bool(fall > DIVIDED and NormalDist().cdf(-fall / error) < SIGNIFICANT)


def _sign_test(first: int, second: int) -> float:
    """The two-sided p value of an exact sign test."""
    return paired_test([True] * first + [False] * second, [False] * first + [True] * second).p_value


def _count_changes(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], equivalent: Equivalent
) -> _Changes:
    settled = lost = invented = 0
    for old, new in zip(before, now, strict=True):
        agreed, agree = _agreed(old, equivalent), _agreed(new, equivalent)
        if agreed is not None:
            lost += not _same(agreed, agree, equivalent)
        elif agree is not None:
            is_known = any(_same(agent["answers"][-1], agree, equivalent) for agent in old["agents"])
            settled += is_known
            invented += not is_known
    return _Changes(settled, lost, invented)


def _agreed(transcript: Mapping[str, Any], equivalent: Equivalent) -> str | None:
    """The last answer of all agents; None if they differ, or if one has none."""
    answers = [agent["answers"][-1] for agent in transcript["agents"]]
    return answers[0] if all(_same(answers[0], answer, equivalent) for answer in answers) else None


def _same(first: str | None, second: str | None, equivalent: Equivalent) -> bool:
    """Whether both are answers, and equivalent. A missing answer differs from everything."""
    return first is not None and second is not None and equivalent(first, second)


def _class_sizes(answers: Sequence[str | None], equivalent: Equivalent) -> list[int]:
    """The sizes of the classes of equivalent answers. Each missing answer is a class of its own."""
    classes: list[list[str | None]] = []
    for answer in answers:
        own = next((members for members in classes if _same(members[0], answer, equivalent)), None)
        if own is None:
            classes.append([answer])
        else:
            own.append(answer)
    return [len(members) for members in classes]


def _entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)
