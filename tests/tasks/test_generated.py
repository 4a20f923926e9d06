"""What the tasks that make their own questions have in common."""

import hashlib
import json
import subprocess
import sys

import pytest

from mft_jax.config import TaskConfig
from mft_jax.tasks import load_task

# Of all ids, questions and answers of a run with seed 7. A run's questions follow from its configuration alone, so these
# must never change.
CHECKSUMS = {
    ("arithmetic", 2, 500): "3ccb00fbfe5d402b9d19e529973511961559a482a61c8c733cc0d6a04ea3e322",
    ("addition", 1, 22): "45c5efbfdb488eab8fe672fa842f2e7e1245fd06fd6d560f54c8051a3bd4c86e",
    ("addition", 2, 500): "ab9954715f6dd533218ba85e0f44c82bc605a186fad0a3acd47baa34e7c74400",
    ("addition", 9, 500): "c49327a0f1526ec42da21fa24681c51d9c7587e678c5285d22f266d74c5460e0",
}


@pytest.mark.parametrize(("name", "digits", "count"), CHECKSUMS)
def test_the_questions_of_a_run_never_change(name, digits, count):
    config = TaskConfig(name=name, addition_digits=digits, train_questions=count, eval_questions=count)
    task = load_task(config, 7)
    listed = json.dumps([[question.id, question.text, question.gold] for question in (*task.train, *task.eval)])
    assert hashlib.sha256(listed.encode()).hexdigest() == CHECKSUMS[name, digits, count]


def test_questions_need_neither_files_nor_slow_imports(tmp_path):
    code = (
        "import sys\nfrom mft_jax.config import TaskConfig\nfrom mft_jax.tasks import load_task\n"
        "for name in ('arithmetic', 'addition'):\n"
        "    load_task(TaskConfig(name=name, train_questions=20, eval_questions=20), 0)\n"
        "print(sorted({'tensorflow_datasets', 'tensorflow', 'jax', 'transformers'} & set(sys.modules)))"
    )
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(tmp_path.iterdir()) == []
