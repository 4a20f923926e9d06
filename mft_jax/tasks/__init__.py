"""Tasks: questions, the parsing of answers, and grading."""

from mft_jax.tasks.load import load_task
from mft_jax.tasks.questions import Question, Task

__all__ = ["Question", "Task", "load_task"]
