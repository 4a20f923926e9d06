"""Figures of a model with many layers from those of the same model with few, because compilation takes time for each layer."""

import dataclasses
from collections.abc import Callable

from mft_jax.models.config import ModelConfig
from mft_jax.plan.figures import Figures

FEW = 2, 4  # numbers of layers that are compiled for a larger model; the second also is the most that is compiled whole


def with_layers(model: ModelConfig, layers: int) -> ModelConfig:
    """The model with its first `layers` layers only."""
    return dataclasses.replace(model, layers=layers, windows=model.windows[:layers])


def compiled_layers(model: ModelConfig, few: tuple[int, int] = FEW) -> tuple[int, ...]:
    """The numbers of layers to compile: two for a deep model, multiples of the period of its windows, else all layers."""
    repeat = model.window_period
    small, large = (-(-own // repeat) * repeat for own in few)
    large = large if large > small else small + repeat
    return (small, large) if large < model.layers else (model.layers,)


def of_all_layers(
    model: ModelConfig, measured: Callable[[ModelConfig], Figures], few: tuple[int, int] = FEW
) -> Figures:
    """The figures of `model`. Those of a deep one are those of fewer layers plus the difference for each missing layer."""
    chosen = compiled_layers(model, few)
    figures = [measured(with_layers(model, layers)) for layers in chosen]
    if len(chosen) == 1:
        return figures[0]
    missing = (model.layers - chosen[1]) / (chosen[1] - chosen[0])
    found = figures[1].combine(figures[0], 1 + missing, -missing)
    # The first program of a process takes longer to compile, so that the difference can be too small.
    return dataclasses.replace(found, compile_seconds=max(found.compile_seconds, figures[1].compile_seconds))
