"""Checksums of weights: equal checksums mean the same model or the same adapter, wherever its files are."""

import hashlib
import os
import pathlib

import jax
import numpy as np

from mft_jax.files import file_error
from mft_jax.models.lora import Adapter
from mft_jax.parallel.placement import to_host

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")  # as `checkpoint_directory` downloads them


def checkpoint_digest(directory: pathlib.Path) -> str:
    """The SHA-256 of a checkpoint: of its weights, configuration, tokenizer and chat template, and of the files' names.

    Reads every byte of the weights. Raises UserError if a file cannot be read.
    """
    whole = hashlib.sha256()
    for path in sorted({path for pattern in _FILES for path in directory.glob(pattern) if path.is_file()}):
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise file_error("read", path, error) from error
        whole.update(f"{os.fsencode(path.name).hex()} {content}\n".encode())
    return whole.hexdigest()


def adapter_digest(adapter: Adapter) -> str:
    """The SHA-256 of one adapter: of its weights, their shapes and dtypes, and its scale."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(adapter)):
        whole.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        whole.update(np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()
