import importlib.util

import pytest

from mft_jax.errors import UserError
from mft_jax.models.encoder import load_encoder


def test_an_encoder_that_cannot_be_used_is_named(tmp_path):
    remedy = "sentence-transformers cannot load"
    if importlib.util.find_spec("sentence_transformers") is None:
        remedy = r"sentence-transformers is not installed: pip install 'mft_jax\[encoder\]'"
    with pytest.raises(UserError, match=f"metrics.encoder is {tmp_path}.*{remedy}"):
        load_encoder(str(tmp_path))
