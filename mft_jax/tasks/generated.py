"""Tasks that make their own questions: each split has a fixed pool, of which a run asks those that its seed chooses."""

from collections.abc import Callable

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.prompts import Prompts
from mft_jax.tasks import answers
from mft_jax.tasks.questions import Question, Task, check_enough

SPLITS = ("train", "eval")

MakeQuestion = Callable[[str, int], Question]  # of a split and a place in its pool; always the same question


def make_generated_task(
    name: str, config: TaskConfig, seed: int, *, pool_size: int, question: MakeQuestion, prompts: Prompts
) -> Task:
    """The questions that `seed` chooses of each split's pool of `pool_size`. Raises UserError when more are asked for."""
    check_enough(config.train_questions, pool_size, "task.train_questions", f"the task {name}'s training set")
    check_enough(config.eval_questions, pool_size, "task.eval_questions", f"the task {name}'s evaluation set")
    counts = {"train": config.train_questions, "eval": config.eval_questions}
    chosen = {
        split: seeds.question_order(range(pool_size), seed, f"{name}-{split}")[: counts[split]] for split in SPLITS
    }
    questions = {split: tuple(question(split, index) for index in chosen[split]) for split in SPLITS}
    return Task(name, questions["train"], questions["eval"], answers.parse_numeric, answers.equivalent, prompts)
