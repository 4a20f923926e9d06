"""Every prompt text, by role. The content follows the paper (section 1 of the method); the words are our own.

A dialogue of one agent over M rounds is a list of chat messages, as chat templates take them:
  user: first(question)      assistant: its first answer
  user: later(summary)       assistant: its second answer          ... and so on to round M
A summary is one call of the untuned base model on `summary(question, answers)`, a dialogue of its own.
"""

from collections.abc import Sequence

Message = dict[str, str]  # {"role": "user" | "assistant", "content": text}

BOXED = r"\boxed{}"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def first(question: str) -> Message:
    """Round 1: one agent, alone."""
    return user(f"{question}\nReason step by step and end with the answer in {BOXED}.")


def later(summary: str) -> Message:
    """Rounds 2..M: an agent that has already answered sees what the others said."""
    return user(f"Other solvers say:\n{summary}\nCheck their steps and yours and end with the answer in {BOXED}.")


def reconsider() -> Message:
    """Rounds 2..M of an agent that has no others to listen to."""
    return user(f"Check your steps, correct any mistake, and end with the answer in {BOXED}.")


def summary(question: str, answers: Sequence[str]) -> Message:
    """Asks the base model to condense the other agents' answers of the previous round, in the agents' order."""
    listed = "\n".join(f"Solver {index}: {answer}" for index, answer in enumerate(answers, start=1))
    return user(f"{question}\n{listed}\nSummarize their steps, their answers, and where they differ.")
