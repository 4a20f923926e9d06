"""Tasks: their questions, and how answers are read and graded."""

from mft_jax.tasks.load import load_task
from mft_jax.tasks.questions import Question, Task

__all__ = ["Question", "Task", "load_task"]
