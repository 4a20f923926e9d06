r"""A model of one layer that learns at once: each of its answers is \boxed{1}, \boxed{2} or \boxed{3}.

Its weights are random, except that the token of each state below makes one of the next state likely. Which number it
says depends on the whole prompt and on its adapter, so agents agree on some questions and differ on others.
"""

import atexit
import functools
import itertools
import json
import pathlib
import shutil
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

from mft_jax.base_model import CHECKPOINT
from mft_jax.models.chat import load_chat
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import save_base
from tests.conftest import random_base

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "head_dim": 8,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
}
STATES = (["<|assistant|>"], ["\\"], ["boxed"], ["{"], ["1", "2", "3"], ["}"], ["<|end|>"])


@functools.cache
def answering_model() -> pathlib.Path:
    """The directory of its checkpoint, which is deleted when the tests end."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="mft_model_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    write_answering_model(directory)
    return directory


def write_answering_model(directory):
    """Writes a checkpoint with the tokenizer of the base model in the package."""
    for path in CHECKPOINT.glob("*.json"):
        shutil.copy(path, directory)
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | SHAPE))
    model = read_model_config(directory)
    save_base(random_base(model, scale=0.1)[1], directory, model)
    file, tokenizer = directory / "model.safetensors", load_chat(directory).tokenizer
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 10  # so that the prompt counts
    embedding, head = np.array(tensors["model.embed_tokens.weight"]), 3 * tensors["lm_head.weight"]
    for state, (now, then) in enumerate(itertools.pairwise(STATES)):
        embedding[tokenizer.convert_tokens_to_ids(now), state] = 3
        head[tokenizer.convert_tokens_to_ids(then), state] += 6
    save_file(
        tensors | {"model.embed_tokens.weight": embedding, "lm_head.weight": head}, file, metadata={"format": "pt"}
    )
