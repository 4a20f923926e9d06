"""The options of `mft ask`: how a question is debated."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How a question is debated. An option that is None has the value of the run that is asked; without a run, a default."""

    method: str | None = None
    """Method whose evaluation debate is held; None: that of the run, or `debate`."""
    iteration: int | None = None
    """Iteration whose agents debate; None: the last finished one."""
    task: str | None = None
    """Task whose prompts and answer parser are used; None: that of the run; without a run, `arithmetic` for the base
    model in the package, and `jsonl` for other models."""
    agents: int | None = None
    """Number of agents; None: as in the run, or 3."""
    rounds: int | None = None
    """Number of rounds; None: as in the run, or 2."""
    max_new_tokens: int | None = None
    """Maximum length of an answer or a summary, in tokens; None: as in the run, or 512."""
    temperature: float | None = None
    """Sampling temperature; None: as in the run, or 1."""
    seed: int | None = None
    """Seed of the sampling; None: that of the run, or 0."""
