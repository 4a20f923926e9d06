"""The training step gives the same adapters as PEFT with torch.optim.AdamW, from the same data and weights."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.finetuning.losses import likelihood
from mft_jax.finetuning.packing import hyper_of
from mft_jax.models.peft import load_peft, save_peft
from mft_jax.models.weights import save_base
from mft_jax.programs import Programs
from mft_jax.programs.train import init_state
from tests.conftest import TINY
from tests.finetuning import conftest

# With a small eps, Adam turns the rounding of a gradient that is almost zero into a large part of a step.
CONFIG = dataclasses.replace(conftest.CONFIG, eps=1e-3)


@pytest.fixture(scope="module")
def ours(tiny, plan, one_device):
    """(adapters after three steps, losses [3, A])."""
    train_step = Programs(tiny.graphdef, tiny.config, one_device).train(
        likelihood, init_state(tiny.weights), None, False
    )
    state, losses, hyper = (
        init_state(jax.tree.map(jnp.array, tiny.weights)),
        [],
        hyper_of(plan, CONFIG, tiny.lora.scale),
    )
    for index in range(3):
        state, metrics = train_step(tiny.base, state, plan.batch(index), np.int32(index), hyper)
        losses.append(np.asarray(metrics.loss))
    return state.adapters, np.stack(losses)


def torch_loss(model, dialogues):
    """The mean loss over the targets of all dialogues, with one forward pass per dialogue."""
    import torch

    total, count = 0.0, 0
    for ids, mask in dialogues:
        ids, mask = torch.tensor(ids, dtype=torch.long), torch.tensor(mask[1:])
        scores = model(ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(scores[mask], ids[1:][mask], reduction="sum")
        count += int(mask.sum())
    return total / count


def torch_steps(model, plan, agent):
    """Trains one agent for up to three steps. Returns the losses."""
    import torch

    torch.set_num_threads(1)  # for such small matrices, synchronizing several threads takes longer
    own = plan.adapters[agent]
    warmup = math.ceil(CONFIG.warmup * own.steps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps, weight_decay=CONFIG.weight_decay
    )
    losses = []
    for index in range(min(3, own.steps)):
        progress = (index - warmup) / max(own.steps - warmup, 1)
        share = (index + 1) / warmup if index < warmup else (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = own.lesson.settings.learning_rate * share
        loss = torch_loss(model, [own.examples[i] for row in own.rows_of(index) for i in row])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CONFIG.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.torch
@pytest.mark.parametrize("agent", range(3))
def test_three_steps_equal_peft_and_adamw(tiny, plan, ours, tmp_path, agent):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_base(tiny.base, tmp_path, tiny.config)
    save_peft(tiny.agent(agent).weights, tmp_path / "start", tiny.lora, str(tmp_path))
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True)
    expected = torch_steps(model, plan, agent)
    assert len(expected) == (3, 2, 1)[agent]  # agents with less data have fewer steps
    adapters, losses = ours
    np.testing.assert_allclose(losses[: len(expected), agent], expected, rtol=1e-4)
    model.save_pretrained(tmp_path / "end")
    _, tuned = load_peft(tmp_path / "end", tiny.config)
    for (path, leaf), mine, start in zip(
        jax.tree_util.tree_leaves_with_path(tuned),
        jax.tree.leaves(jax.tree.map(lambda leaf: leaf[agent], adapters)),
        jax.tree.leaves(tiny.agent(agent).weights),
        strict=True,
    ):
        moved = np.abs(leaf - start)
        assert np.mean(moved) > 1e-3
        np.testing.assert_allclose(mine, leaf, atol=1e-4 * moved.max() + 1e-6, err_msg=jax.tree_util.keystr(path))
