"""Tasks that make their own questions: fixed pools, one for each split, in no other split; a run uses a seeded choice."""

import abc
from collections.abc import Callable

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.prompts import Prompts
from mft_jax.tasks import answers
from mft_jax.tasks.prepared import Builder, DamagedError, Prepared, load_prepared, read_records
from mft_jax.tasks.questions import Question, Task, check_enough, seeded_order

SPLITS = ("train", "eval")

MakeQuestion = Callable[[str, int], Question]  # (split, index in its pool): the same everywhere and always


class GeneratedBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes the pools as array_record files; a subclass says what is in them."""

    @abc.abstractmethod
    def pool_size(self) -> int:
        """Questions in each split."""

    @abc.abstractmethod
    def question(self, split: str, index: int) -> Question: ...

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "question": tfds.features.Text(),
                "answer": tfds.features.Text(),
            }
        )
        # Without shuffling, record i is question i: a run can read just the ones it uses.
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for index in range(self.pool_size()):
            question = self.question(split, index)
            yield index, {"id": question.id, "question": question.text, "answer": question.gold}


def load_generated(
    task: str, config: TaskConfig, seed: int, data: Prepared, size: int, question: MakeQuestion, prompts: Prompts
) -> Task:
    """Builds the pools of `size` questions where they are missing, and reads those that `seed` chooses."""
    check_enough(config.train_questions, size, "task.train_questions", f"the task {task}'s training set")
    check_enough(config.eval_questions, size, "task.eval_questions", f"the task {task}'s evaluation set")
    asked = {"train": config.train_questions, "eval": config.eval_questions}
    chosen = {split: seeded_order(range(size), seed, f"{task}-{split}")[: asked[split]] for split in SPLITS}

    def read(builder: Builder) -> dict[str, tuple[Question, ...]]:
        return {split: _read_split(builder, split, chosen[split], size, question) for split in SPLITS}

    questions = load_prepared(task, data, read)
    return Task(task, questions["train"], questions["eval"], answers.parse_numeric, answers.equivalent, prompts)


def _read_split(
    builder: Builder, split: str, indices: tuple[int, ...], size: int, question: MakeQuestion
) -> tuple[Question, ...]:
    """The chosen questions, checked against what they must be. Raises DamagedError."""
    found = builder.info.splits[split].num_examples
    if found != size:
        raise DamagedError(f"its split {split} has {found} questions, expected {size}")
    records = read_records(builder, split, indices)
    questions = tuple(Question(record["id"], record["question"], record["answer"]) for record in records)
    for read, index in zip(questions, indices, strict=True):
        # An older build could hold questions that the base model has seen: never trust, always compare.
        if read != question(split, index):
            raise DamagedError(f"its question {read.id} is not the one expected")
    return questions
