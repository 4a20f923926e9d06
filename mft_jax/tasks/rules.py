"""How the questions of each task are asked, and how their answers are parsed and compared.

It needs no data set, so a question of one's own can be asked as the questions of any task are.
"""

from mft_jax.prompts import ADDITION, GENERAL, GSM8K, MATH, MMLU
from mft_jax.tasks import answers, parsing
from mft_jax.tasks.questions import Task

_RULES = {
    "arithmetic": (answers.parse_numeric, GENERAL),
    "addition": (answers.parse_numeric, ADDITION),
    "gsm8k": (parsing.parse_number, GSM8K),
    "math": (parsing.parse_expression, MATH),
    "mmlu": (parsing.parse_choice, MMLU),
    "jsonl": (answers.parse_boxed, GENERAL),  # its loader chooses another parser if all its answers are numbers
}


def without_questions(name: str) -> Task:
    """The task of this name, without questions."""
    parse, prompts = _RULES[name]
    return Task(name, train=(), eval=(), parse=parse, equivalent=answers.equivalent, prompts=prompts)
