"""Where things are in a run: the names of its objects in the store. Nothing here knows a method; files go by adapters' names.

run.lock               held while a process works in the directory
run.json               status, seed, what each start ran on, which settings were changed between starts
config.yaml            resolved configuration; written last, so a directory without it is not yet a run
questions.json         ids of the questions, and a checksum of their texts; written once the run is created
metrics.jsonl          scalars of every optimizer step
results.json           derived from the evaluations
initial/               adapters that were imported before the run began; without it agents begin as the base model
damaged/               what was set aside
"""

CONFIG = "config.yaml"
MANIFEST = "run.json"
QUESTIONS = "questions.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
INITIAL = "initial"
EVALUATIONS = "evaluations"


def debate(iteration: int) -> str:
    """The stage with the debate that makes the data of iteration K = 1..L."""
    return f"iteration_{iteration}/debate/train.jsonl"


def training_set(iteration: int, name: str) -> str:
    """The examples of one adapter."""
    return f"iteration_{iteration}/finetune/{name}.jsonl"


def training_set_checksums(iteration: int) -> str:
    """The checksums of an iteration's training sets."""
    return f"iteration_{iteration}/finetune/training_sets.json"


def checkpoint(iteration: int) -> str:
    """The directory of the checkpoints of an iteration."""
    return f"iteration_{iteration}/checkpoint"


def evaluation(method: str, iteration: int) -> str:
    """The stage with the held-out debates of a method after finetuning K; K = 0: without finetuning."""
    return f"iteration_{iteration}/eval/eval.jsonl" if iteration else f"baselines/{method}/eval.jsonl"
