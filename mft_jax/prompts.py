r"""Every prompt text, by task and role. The content follows the paper (section 1 of the method); the words are our own.

A dialogue of one agent over M rounds is a list of chat messages, as chat templates take them:
  user: first(question)      assistant: its first answer
  user: later(summary)       assistant: its second answer          ... and so on to round M
In a debate without summaries `later_direct(answers)` takes the place of `later(summary)`; for an agent that debates with
nobody else `reconsider()` does. A summary is the base model's answer to `summary(question, answers)`, which is a dialogue
of its own.
"""

import dataclasses
from collections.abc import Sequence

Message = dict[str, str]  # {"role": "user" | "assistant", "content": text}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a task asks of its agents and of the summarizer."""

    solve: str
    """After the question, in round 1."""
    check: str
    """After what the others said, in rounds 2..M."""
    again: str
    """In rounds 2..M of an agent that debates with nobody else."""
    summarize: str
    """After the question and the others' answers, when a summary is asked for."""

    def first(self, question: str) -> Message:
        """Round 1: one agent, alone."""
        return user(f"{question}\n{self.solve}")

    def later(self, summary: str) -> Message:
        """Rounds 2..M: an agent that has already answered sees a summary of what the others said."""
        return user(f"Other solvers say:\n{summary}\n{self.check}")

    def later_direct(self, answers: Sequence[str]) -> Message:
        """Rounds 2..M without summaries: the agent sees the others' answers themselves, in the agents' order."""
        return self.later(_number(answers))

    def reconsider(self) -> Message:
        """Rounds 2..M of an agent that debates with nobody else."""
        return user(self.again)

    def summary(self, question: str, answers: Sequence[str]) -> Message:
        """Asks the base model to condense the other agents' answers of the previous round, in the agents' order."""
        return user(f"{question}\n{_number(answers)}\n{self.summarize}")


def _number(answers: Sequence[str]) -> str:
    return "\n".join(f"Solver {index}: {answer}" for index, answer in enumerate(answers, start=1))


# For the arithmetic task and users' own questions. The base model in the package was trained on exactly these words.
GENERAL = Prompts(
    solve=r"Reason step by step and end with the answer in \boxed{}.",
    check=r"Check their steps and yours and end with the answer in \boxed{}.",
    again=r"Check your steps, correct any mistake, and end with the answer in \boxed{}.",
    summarize="Summarize their steps, their answers, and where they differ.",
)

# Short, and without a box: a model of a hundred million parameters ignores a longer instruction, or repeats it.
ADDITION = Prompts(
    solve="Add the numbers and write the sum in one short line.",
    check="Add the numbers again, compare, and write the right sum in one short line.",
    again="Add the numbers again and write the right sum in one short line.",
    summarize="Say in one short line which sums they found.",
)

GSM8K = Prompts(
    solve=r"Work it out step by step, then give the final number, without a unit, in \boxed{}.",
    check=r"Use what is right in them, find the mistakes in theirs and in your own solution, and give the final number, "
    r"without a unit, in \boxed{}.",
    again=r"Go through your solution step by step, correct what is wrong, and give the final number, without a unit, "
    r"in \boxed{}.",
    summarize="Summarize how each solver reasons, which number each one finds, and where they differ. Do not solve it "
    "yourself.",
)

MATH = Prompts(
    solve=r"Reason step by step, then give the final answer as a simplified LaTeX expression in \boxed{}.",
    check=r"Use what is right in them, find the mistakes in theirs and in your own solution, and give the final answer as "
    r"a simplified LaTeX expression in \boxed{}.",
    again=r"Go through your solution step by step, correct what is wrong, and give the final answer as a simplified LaTeX "
    r"expression in \boxed{}.",
    summarize="Summarize how each solver reasons, which answer each one finds, and where they differ. Do not solve it "
    "yourself.",
)

MMLU = Prompts(
    solve=r"Say why the choices are right or wrong, then give only the letter of the right one in \boxed{}.",
    check=r"Weigh their reasons against yours, correct your choice if it is wrong, and give only the letter of the right "
    r"one in \boxed{}.",
    again=r"Go through your reasons, correct your choice if it is wrong, and give only the letter of the right one in "
    r"\boxed{}.",
    summarize="Summarize which choice each solver takes, for which reasons, and where they differ. Do not choose yourself.",
)
