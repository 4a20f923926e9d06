"""Sentence embeddings by a model of the optional package sentence-transformers."""

import importlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mft_jax.errors import UserError

Encoder = Callable[[Sequence[str]], Float[np.ndarray, "texts D"]]


def load_encoder(name: str) -> Encoder:
    """The encoder of a sentence-transformers model, given by its directory or hub name.

    Raises UserError if the package is not installed, or if the model cannot be loaded.
    """
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise UserError(
            f"metrics.encoder is {name}, but sentence-transformers is not installed: pip install 'mft_jax[encoder]', or "
            "leave metrics.encoder out to use the hidden states of the base model."
        ) from error
    try:
        model = package.SentenceTransformer(name)
    except Exception as error:  # the library raises many kinds, all of which mean that the model cannot be used
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"metrics.encoder is {name}, which sentence-transformers cannot load ({reason}): give the directory or the "
            "hub name of one of its models."
        ) from error
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)
