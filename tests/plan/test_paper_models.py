"""Plans of the paper's three models, with three generators and three critics, for each kind of slice.

CI makes three of the nine plans, each model and each kind of slice once; `pytest -m "tpu and by_hand" tests/plan` the others.
"""

import math
import pathlib
import re

import pytest

from mft_jax.config import load_config
from mft_jax.methods import make_method
from mft_jax.metrics.flops import matmul_parameters
from mft_jax.plan.models import read_model
from mft_jax.plan.plan import make_plan
from mft_jax.plan.table import plan_as_dict
from mft_jax.plan.target import find_target
from mft_jax.plan.topology import prepare_environment
from tests.plan.conftest import on_mesh

pytestmark = [pytest.mark.tpu, pytest.mark.slow]
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Mesh, and dollars for all chips and an hour on demand.
SLICES = {"v5e-8": ((1, 2, 4), 8 * 1.20), "v5p-8": ((1, 1, 4), 4 * 4.20), "v6e-8": ((1, 2, 4), 8 * 2.70)}
PARAMETERS = {"llama3_math": 8_030_261_248, "mistral_gsm8k": 7_248_023_552, "phi3_math": 3_821_079_552}
IN_CI = {("llama3_math", "v5e-8"), ("mistral_gsm8k", "v5p-8"), ("phi3_math", "v6e-8")}


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        pytest.param(name, topology, marks=[] if (name, topology) in IN_CI else [pytest.mark.by_hand])
        for name in PARAMETERS
        for topology in SLICES
    ],
)
def test_a_plan(name, topology):
    """It fits, and what it says of memory, FLOPs, bytes, sums over chips and dollars is what a calculation by hand gives."""
    mesh, hourly = SLICES[topology]
    prepare_environment(topology)
    config, target = on_mesh(load_config(CONFIGS / f"{name}.yaml"), *mesh), find_target(topology)
    plan, (model, _) = make_plan(config, target), read_model(config.model)
    assert plan.fits
    assert len(make_method(config.method, config).lessons) == 6
    prefill, decode, train = (own.figures for own in plan.programs)

    # A chip has a quarter of the weights in bfloat16. Of the embedding a step reads only the rows of its tokens.
    weights, embedding = PARAMETERS[name] * 2 / 4, model.vocab_size * model.embed * 2 / 4
    assert all(phase.kinds["weights"] == pytest.approx(weights, rel=0.005) for phase in plan.phases)
    rows, columns = 3 * config.sampling.rows / mesh[1], int(plan.programs[1].case.split(", ")[1].split()[0])
    cache = 2 * model.layers * rows * model.kv_heads / 4 * columns * model.head_dim * 2
    assert decode.memory["cache"] == pytest.approx(cache, rel=0.01)
    ideal = weights - embedding + cache + decode.memory["adapters"]
    assert 0.9 * ideal < decode.counts.bytes_read < 1.15 * ideal  # counted from 2 and 4 layers
    # On v5p the results of matmuls are written too (docs/performance.md).
    assert decode.counts.bytes_written < (0.05 if topology == "v5p-8" else 0.03) * ideal
    # Two in each layer, and those of the embedding, of the logits and of the choice of a token.
    assert 0 <= decode.counts.collectives["all-reduce"] - 2 * model.layers < 20
    # Long prompts are prefilled agent by agent: for each agent, two in each layer and that of the embedding.
    _, prompts, tokens = map(int, re.findall(r"\d+", plan.programs[0].case))
    passes = 3 if prompts // mesh[1] * tokens >= 4096 else 1
    assert prefill.counts.collectives["all-reduce"] == passes * (2 * model.layers + 1)
    assert prefill.memory["temporaries"] < (0.5e9 if passes == 3 else 1.2e9)

    # Forward, again in the backward pass because activations are not kept, and the gradient of each activation. What only
    # the last matmul of a layer needs is not computed again.
    tokens = 6 * config.finetuning.batch_rows * config.finetuning.row_tokens
    assert 0.9 < train.counts.flops / (6 * matmul_parameters(model) * tokens / math.prod(mesh)) < 1.15
    # In each layer two sums of activations forward, two in the backward pass, and one of what is computed again, if it is not
    # kept. With each goes that of a low-rank product or two. At the end the gradients of those factors of adapters that every
    # chip has, in float32: those as long as the hidden states.
    sums, factors, chips = 4 if config.finetuning.keep_sums else 5, 4 if model.fused else 7, math.prod(mesh)
    updated = 6 * model.layers * factors * config.lora.rank * model.embed * 4
    activations = model.layers * tokens / mesh[1] * (sums * model.embed + factors * config.lora.rank) * 2
    expected = 2 * 3 / 4 * activations + 2 * (chips - 1) / chips * updated
    assert train.counts.sent["all-reduce"] == pytest.approx(expected, rel=0.03)
    others = {kind: sent for kind, sent in train.counts.sent.items() if kind != "all-reduce"}
    if model.fused:  # the outputs of the adapters of fused projections are put into groups, and their gradients back
        assert sum(others.values()) < 0.015 * train.counts.sent["all-reduce"]
    else:
        # Of these factors a chip updates a quarter. What it sends is the new weights and the two moments of Adam.
        assert others == {"all-gather": pytest.approx(3 * 3 / 4 * updated, rel=0.001)}
    if (name, topology) == ("llama3_math", "v5e-8"):
        assert max(phase.needed for phase in plan.phases) < 15e9  # of 16.9e9

    found = plan_as_dict(plan)["estimate"]
    hours = sum(stage.seconds for stage in plan.stages) / 3600 + plan.compile_seconds / 3600
    assert found["dollars_on_demand"] == pytest.approx(hours * hourly)
    assert plan.programs[1].seconds > 0.9 * ideal / target.speeds.memory_bytes  # a step is not faster than its bytes
