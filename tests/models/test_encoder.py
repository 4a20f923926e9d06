import importlib.util

import numpy as np
import pytest

from mft_jax.errors import UserError
from mft_jax.models.encoder import load_encoder

IS_INSTALLED = importlib.util.find_spec("sentence_transformers") is not None


def test_an_encoder_that_cannot_be_used_is_named(tmp_path):
    remedy = "sentence-transformers is not installed: pip install 'mft_jax\\[encoder\\]'"
    if IS_INSTALLED:
        remedy = "sentence-transformers cannot load"
    with pytest.raises(UserError, match=f"metrics.encoder is {tmp_path}.*{remedy}"):
        load_encoder(str(tmp_path))


@pytest.mark.torch
def test_equal_texts_have_equal_embeddings(tmp_path):
    """With a tiny random model."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=4, **sizes)).save_pretrained(tmp_path)
    first, same, other = load_encoder(str(tmp_path))(["a b", "a b", "b b b"])
    assert first.shape == (16,)
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.1
