"""The shape of a model without its weights: from its config.json, wherever that is."""

import pathlib

import jax.numpy as jnp

from mft_jax.base_model import CHECKPOINT
from mft_jax.config import ModelSource
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig, read_model_config
from mft_jax.models.json_files import read_json_object

SHIPPED = pathlib.Path(__file__).parents[2] / "configs" / "models"  # of a checkout: ORGANIZATION/NAME/config.json


def model_directory(source: ModelSource) -> pathlib.Path:
    """The directory with the model's config.json: a checkpoint, a model in configs/models, or one file of the hub.

    Raises UserError if there is none.
    """
    if source.path is None:
        return CHECKPOINT
    for directory in (pathlib.Path(source.path), SHIPPED / source.path):
        if (directory / "config.json").is_file():
            return directory
    from huggingface_hub import hf_hub_download

    try:
        return pathlib.Path(hf_hub_download(source.path, "config.json")).parent
    except Exception as error:  # the hub's client raises many kinds, all of which mean that there is no file
        shipped = ", ".join(sorted(str(path.parent.relative_to(SHIPPED)) for path in SHIPPED.glob("*/*/config.json")))
        raise UserError(
            f"There is no config.json of {source.path}, here or on the hub ({type(error).__name__}): give a directory with "
            f"the config.json of the model, or one of those that are included: {shipped}."
        ) from error


def read_model(source: ModelSource) -> tuple[ModelConfig, jnp.dtype]:
    """The shape of the model, and the dtype that its weights are stored in (float32 if its config.json does not say)."""
    directory = model_directory(source)
    raw = read_json_object(directory / "config.json", "a model configuration", "download it again")
    stored = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    return read_model_config(directory), jnp.dtype(stored)
