r"""All prompt texts, by task and role. Their content follows the paper (arXiv 2501.05707); the wording is our own.

A dialogue of one agent over M rounds is a list of chat messages in the format of chat templates:
  user: first(question)      assistant: its first answer
  user: later(summary)       assistant: its second answer          ... and so on to round M
In a debate without summaries, `later_direct(answers)` replaces `later(summary)`. If there is nothing to show to an
agent, because no other agent gave an answer or the protocol shows nothing, `reconsider()` does. A summary is the
answer of the base model, or of the agent's own speaker, to `summary(question, answers)`, in a separate dialogue.
"""

import dataclasses
from collections.abc import Sequence

Message = dict[str, str]  # {"role": "user" | "assistant", "content": text}


def user(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """The instructions of one task, and the messages made from them."""

    solve: str
    """Follows the question in round 1."""
    check: str
    """Follows the summary or the answers of the other agents in rounds 2..M of a debate."""
    join: str
    """Follows them in rounds 2..M if the agents cooperate instead."""
    again: str
    """The complete message of rounds 2..M if there is nothing to show to the agent."""
    summarize: str
    """Follows the question and the answers of the other agents in the request for a summary."""

    def first(self, question: str, name: str | None = None) -> Message:
        """The message to an agent in round 1. With `name`, it starts by telling the agent its name."""
        text = f"{question}\n{self.solve}"
        return user(text if name is None else f"{name}\n{text}")

    def later(self, summary: str, *, cooperate: bool = False) -> Message:
        """The message to an agent in rounds 2..M: a summary of the other agents' answers."""
        return user(f"Other solvers say:\n{summary}\n{self.join if cooperate else self.check}")

    def later_direct(self, answers: Sequence[str], *, cooperate: bool = False) -> Message:
        """The message to an agent in rounds 2..M without summaries: the other agents' answers, in agent order."""
        return self.later(_number(answers), cooperate=cooperate)

    def hint(self, answer: str) -> Message:
        """The message to an agent that tried a question and is asked to find out how to reach the true answer."""
        return self.later(f"Answers: {answer}")

    def reconsider(self) -> Message:
        """The message to an agent in rounds 2..M if there is nothing to show to it."""
        return user(self.again)

    def summary(self, question: str, answers: Sequence[str]) -> Message:
        """The request for a summary of the other agents' answers of the previous round, given in agent order."""
        return user(f"{question}\n{_number(answers)}\n{self.summarize}")


def _number(answers: Sequence[str]) -> str:
    return "\n".join(f"Solver {index}: {answer}" for index, answer in enumerate(answers, start=1))


# For the arithmetic task and users' own questions. The base model in the package was trained on exactly these prompts.
GENERAL = Prompts(
    solve=r"Reason step by step and end with the answer in \boxed{}.",
    check=r"Check their steps and yours and end with the answer in \boxed{}.",
    join=r"Build on what is right in their steps and yours, agree on one solution, and end with the answer in \boxed{}.",
    again=r"Check your steps, correct any mistake, and end with the answer in \boxed{}.",
    summarize="Summarize their steps, their answers, and where they differ.",
)

# Short and without \boxed{}: a model of a hundred million parameters ignores or repeats a longer instruction.
ADDITION = Prompts(
    solve="Add the numbers and write the sum in one short line.",
    check="Add the numbers again, compare, and write the right sum in one short line.",
    join="Agree with them on one sum and write it in one short line.",
    again="Add the numbers again and write the right sum in one short line.",
    summarize="Say in one short line which sums they found.",
)

GSM8K = Prompts(
    solve=r"Work it out step by step, then give the final number, without a unit, in \boxed{}.",
    check=r"Use what is right in them, find the mistakes in theirs and in your own solution, and give the final "
    r"number, without a unit, in \boxed{}.",
    join=r"Build on what is right in their solutions and yours, agree with them on one solution, and give the final number, "
    r"without a unit, in \boxed{}.",
    again=r"Go through your solution step by step, correct what is wrong, and give the final number, without a unit, "
    r"in \boxed{}.",
    summarize="Summarize how each solver reasons, which number each one finds, and where they differ. Do not solve it "
    "yourself.",
)

MATH = Prompts(
    solve=r"Reason step by step, then give the final answer as a simplified LaTeX expression in \boxed{}.",
    check=r"Use what is right in them, find the mistakes in theirs and in your own solution, and give the final answer "
    r"as a simplified LaTeX expression in \boxed{}.",
    join=r"Build on what is right in their solutions and yours, agree with them on one solution, and give the final answer "
    r"as a simplified LaTeX expression in \boxed{}.",
    again=r"Go through your solution step by step, correct what is wrong, and give the final answer as a simplified "
    r"LaTeX expression in \boxed{}.",
    summarize="Summarize how each solver reasons, which answer each one finds, and where they differ. Do not solve it "
    "yourself.",
)

MMLU = Prompts(
    solve=r"Say why the choices are right or wrong, then give only the letter of the right one in \boxed{}.",
    check=r"Weigh their reasons against yours, correct your choice if it is wrong, and give only the letter of the "
    r"right one in \boxed{}.",
    join=r"Build on their reasons and yours, agree with them on one choice, and give only the letter of that choice in "
    r"\boxed{}.",
    again=r"Go through your reasons, correct your choice if it is wrong, and give only the letter of the right one in "
    r"\boxed{}.",
    summarize="Summarize which choice each solver takes, for which reasons, and where they differ. Do not choose "
    "yourself.",
)
