"""The names of the files of a run in its store. They contain the names of methods and adapters, as METHOD and NAME below.

run.lock               locked while a process works in the directory
run.json               status, seed, the environment of each start, and the settings that changed between starts
config.yaml            the complete configuration; created last, so a directory without it is not a run yet
questions.json         ids of the questions, and a checksum of their texts; written after the run is created
metrics.jsonl          scalars of every optimizer step
results.json           derived from the evaluations
X.inputs.json          beside the transcripts X.jsonl: what they were computed from
feedback.jsonl         verdicts of people on training questions; feedback.lock is locked while verdicts are added
report.html            the HTML report; report_debates/ beside it has the debates that do not fit into it
initial/               imported adapters that the run starts from; without them, agents start as the base model
baselines/METHOD/      the evaluation of a method without finetuning
iteration_K/           the training debate, training sets (finetune/NAME.jsonl), checkpoints and evaluation of iteration K
evaluations/LABEL/     an evaluation of the agents by `mft eval`, stored like a run
damaged/               damaged files, moved here by `Store.set_aside`
"""

CONFIG = "config.yaml"
MANIFEST = "run.json"
QUESTIONS = "questions.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
FEEDBACK = "feedback.jsonl"
FEEDBACK_LOCK = "feedback.lock"
REPORT = "report.html"
INITIAL = "initial"
EVALUATIONS = "evaluations"


def debate(iteration: int) -> str:
    """The stage with the debate that generates the training data of an iteration; iterations are counted from 1."""
    return f"iteration_{iteration}/debate/train.jsonl"


def inputs(stage: str) -> str:
    """What the transcripts of a stage were computed from: "X.inputs.json" beside "X.jsonl"."""
    return f"{stage.removesuffix('.jsonl')}.inputs.json"


def training_set(iteration: int, name: str) -> str:
    """The training set of one adapter."""
    return f"iteration_{iteration}/finetune/{name}.jsonl"


def training_set_checksums(iteration: int) -> str:
    """The checksums of an iteration's training sets."""
    return f"iteration_{iteration}/finetune/training_sets.json"


def used_feedback(iteration: int) -> str:
    """The verdicts of people that the training sets of an iteration were selected with."""
    return f"iteration_{iteration}/finetune/feedback.json"


def checkpoint(iteration: int) -> str:
    """The directory of the checkpoints of an iteration."""
    return f"iteration_{iteration}/checkpoint"


def verdict(iteration: int) -> str:
    """The record that a run ended after this iteration because the society collapsed, and why."""
    return f"iteration_{iteration}/collapsed.json"


def diversity(method: str, iteration: int, measure: str) -> str:
    """The stage with a measure of diversity on the evaluation transcripts of a method after an iteration."""
    return f"{evaluation(method, iteration).rpartition('/')[0]}/diversity_{measure}.jsonl"


def evaluation(method: str, iteration: int) -> str:
    """The stage with the evaluation transcripts of a method after an iteration; 0: without finetuning."""
    return f"iteration_{iteration}/eval/eval.jsonl" if iteration else f"baselines/{method}/eval.jsonl"
