"""The training script: the content of its batches, and a tiny run that learns and is deterministic."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mft_jax.base_model import CHECKPOINT
from mft_jax.base_model.train import Recipe, pack_batches, step_accuracy
from mft_jax.models.chat import load_chat

TINY = {
    "steps": 20,
    "log-every": 10,
    "rows": 4,
    "embed": 64,
    "ffw": 64,
    "layers": 1,
    "warmup-steps": 2,
    "learning-rate": 0.01,
}


@pytest.fixture(scope="module")
def chat():
    return load_chat(CHECKPOINT)


@pytest.fixture(scope="module")
def batch(chat):
    recipe = Recipe(out=pathlib.Path("unused"), stage="debates", rows=6, row_tokens=384)
    return next(pack_batches(recipe, chat))


def test_rows_contain_complete_dialogues(chat, batch):
    assert (batch["segment_ids"] > 0).mean() > 0.85  # at most 15 % padding
    for tokens, positions, segments in zip(batch["tokens"], batch["positions"], batch["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            text = chat.tokenizer.decode(tokens[inside])
            assert text.startswith("<|user|>What is ")
            assert text.endswith("<|end|>")
            assert positions[inside].tolist() == list(range(inside.sum()))


def test_only_assistant_turns_are_targets(chat, batch):
    targets = "".join(chat.tokenizer.decode(t[m]) for t, m in zip(batch["tokens"], batch["targets"], strict=True))
    assert "boxed" in targets
    assert "What is" not in targets
    assert "Other solvers" not in targets


def test_step_accuracy_counts_complete_results(chat, batch):
    perfect = np.roll(batch["tokens"], -1, axis=1)
    assert step_accuracy(chat, batch, perfect) == 1.0
    assert step_accuracy(chat, batch, np.zeros_like(perfect)) == 0.0


@pytest.mark.slow
def test_a_tiny_run_learns_and_is_deterministic(tmp_path):
    for name in ("one", "two"):
        command = [sys.executable, "-m", "mft_jax.base_model.train", "--out", str(tmp_path / name)]
        command += [f"--{field}={setting}" for field, setting in TINY.items()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    losses = [json.loads(line)["loss"] for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
