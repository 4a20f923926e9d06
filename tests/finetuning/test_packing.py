import dataclasses
import itertools

import numpy as np

from mft_jax.finetuning.encoding import encode_apart
from mft_jax.finetuning.packing import pack_rows
from mft_jax.seeds import packing
from tests.finetuning.conftest import CONFIG, LESSONS, example, plan_of


def segments(batch, agent):
    """(ids, {offset of the predicting token: target id}) of every segment of an agent, read back from a batch."""
    found = []
    for row in range(batch.tokens.shape[1]):
        tokens, positions, ids = (x[agent, row] for x in (batch.tokens, batch.positions, batch.segment_ids))
        used = batch.target_weight[agent, row] > 0
        targets = dict(zip(batch.target_index[agent, row][used], batch.target_ids[agent, row][used], strict=True))
        for segment in range(1, ids.max() + 1):
            where = np.flatnonzero(ids == segment)
            assert (np.diff(where) == 1).all()
            assert (positions[where] == np.arange(len(where))).all()
            own = {int(at - where[0]): int(id) for at, id in targets.items() if where[0] <= at <= where[-1]}
            found.append((tokens[where].tolist(), own))
    return found


def test_targets_are_the_assistants_tokens(chat):
    """The targets are both answers with their end-of-turn tokens, each predicted from the token before it."""
    dialogue = example("q", "1+1", "it is 2", "sure?", "yes")
    plan = plan_of(chat, [[dialogue]], LESSONS[1:2])
    ((ids, targets),) = segments(plan.batch(0), 0)
    assert chat.tokenizer.decode(list(targets.values())) == "it is 2<|end|>yes<|end|>"
    assert all(ids[at + 1] == id for at, id in targets.items())
    plan = plan_of(chat, [[{**dialogue, "learned": [-1]}]], LESSONS[1:2])
    ((_, targets),) = segments(plan.batch(0), 0)
    assert chat.tokenizer.decode(list(targets.values())) == "yes<|end|>"


def test_every_epoch_contains_every_example_once(plan, examples, chat):
    for agent, (own, epochs) in enumerate(zip(examples, (2, 1, 1), strict=True)):
        seen = sorted(ids for step in range(plan.total) for ids, _ in segments(plan.batch(step), agent))
        units, _ = encode_apart(chat, own, CONFIG.row_tokens)
        assert seen == sorted([part.encoded[0].tolist() for (part,) in units] * epochs)


def test_steps_and_rows_of_agents(plan):
    """Agents with less data have fewer steps. The numbers of rows in the steps of an agent differ by at most one."""
    assert plan.total == max(plan.steps)
    assert plan.steps[0] > plan.steps[2] == 1
    for index, agent in enumerate(plan.adapters):
        rows = [(plan.batch(step).segment_ids[index, :, 0] > 0).sum() for step in range(plan.total)]
        assert sum(rows) == len(agent.rows)
        own = rows[: plan.steps[index]]
        assert max(own) - min(own) <= 1
        assert not any(rows[plan.steps[index] :])
        assert not plan.batch(plan.total - 1).target_weight[2].any()
    assert plan.row_targets % 64 == 0


def test_the_same_inputs_give_the_same_bytes(plan, chat, examples):
    again = plan_of(chat, examples)
    assert again.digest == plan.digest
    for step in (plan.total - 1, 0):
        for a, b in zip(plan.batch(step)[:-1], again.batch(step)[:-1], strict=True):
            assert a.tobytes() == b.tobytes()
    for changed in ({"seed": 2}, {"iteration": 3}):
        other = plan_of(chat, examples, **changed)
        assert [own.rows for own in other.adapters] != [own.rows for own in plan.adapters]
        assert other.digest != plan.digest


def test_the_digest_depends_on_tokens_and_targets_but_not_on_the_learning_rate(plan, chat, examples):
    (first, *rest), *others = examples
    changed = [dict(first, messages=[*first["messages"][:-1], dict(first["messages"][-1], content="9")]), *rest]
    assert plan_of(chat, [changed, *others]).digest != plan.digest
    final = [[{**own, "learned": [-1]} for own in each] for each in examples]
    assert plan_of(chat, final).digest != plan.digest
    slower = dataclasses.replace(LESSONS[0], settings=dataclasses.replace(CONFIG.generator, learning_rate=1e-5))
    assert plan_of(chat, examples, (slower, *LESSONS[1:])).digest == plan.digest


def test_an_adapters_rows_do_not_depend_on_the_others(plan, chat, examples):
    alone = plan_of(chat, [examples[0], [], []])
    assert alone.adapters[0].rows == plan.adapters[0].rows
    assert alone.steps.tolist() == [plan.steps[0], 0, 0]


def test_long_dialogues_are_left_out_and_counted(chat):
    dialogues = [example("short", "1+1", "2"), example("long", "1+1", "2" * 200), example("other", "2+2", "4")]
    plan = plan_of(chat, [dialogues], LESSONS[:1])
    assert plan.left_out.tolist() == [1]
    texts = {chat.tokenizer.decode(ids) for ids, _ in plan.adapters[0].examples}
    assert texts == {f"<|user|>{a}<|end|>\n<|assistant|>{b}<|end|>\n" for a, b in [("1+1", "2"), ("2+2", "4")]}
    fitting = dataclasses.replace(CONFIG, row_tokens=max(len(ids) for ids, _ in plan.adapters[0].examples))
    assert plan_of(chat, [dialogues], LESSONS[:1], fitting).left_out == [1]


def test_agents_without_examples_have_no_steps(chat):
    plan = plan_of(chat, [[], []], LESSONS[:2])
    assert plan.total == 0
    assert plan.steps.tolist() == [0, 0]


def test_first_fit():
    """Each example is in the first row that had room for it."""
    lengths = [50, 30, 20, 70, 10, 60, 40, 100]
    rows = pack_rows(lengths, 100, packing(0, 1, 0, 0))
    assert sorted(itertools.chain(*rows)) == list(range(8))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    order = packing(0, 1, 0, 0).permutation(8).tolist()
    for place, row in enumerate(rows):
        for own, earlier in itertools.product(row, rows[:place]):
            there = sum(lengths[i] for i in earlier if order.index(i) < order.index(own))
            assert there + lengths[own] > 100
