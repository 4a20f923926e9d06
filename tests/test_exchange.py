"""Agents out of a finished run and into a new one, through the command and the Python API, with a tiny model."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mft_jax
from mft_jax import experiment, stages
from mft_jax.config import (
    DebateConfig,
    ExperimentConfig,
    FinetuningConfig,
    LoraConfig,
    ModelSource,
    RoleConfig,
    SamplingConfig,
    TaskConfig,
    to_yaml,
)
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.models.chat import load_chat
from mft_jax.models.config import read_model_config
from mft_jax.models.lora import Adapter, init_society
from mft_jax.models.peft import load_peft, save_peft
from mft_jax.models.weights import load_base
from mft_jax.prompts import assistant, user
from mft_jax.report.progress import SilentReporter
from mft_jax.runs import layout
from mft_jax.runs.adapters import read_adapters
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.training_sets import write_training_sets
from mft_jax.setup import prepare
from tests.small_run import MODEL

LORA = LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "down_proj"))  # in no field the default
NAMES = ("generator_0", "generator_1", "critic_0", "critic_1")
# Of the run that starts from imported adapters: it knows nothing of their rank.
TO_COME = ExperimentConfig(
    model=ModelSource(path=str(MODEL)),
    baselines=(),
    task=TaskConfig(train_questions=6, eval_questions=2),
    debate=DebateConfig(agents=2),
    sampling=SamplingConfig(rows=4, prefill_rows=4, max_new_tokens=96),
    finetuning=FinetuningConfig(
        generator=RoleConfig(learning_rate=1e-4, epochs=1),
        critic=RoleConfig(learning_rate=1e-4, epochs=1),
        batch_rows=1,
        row_tokens=256,
        save_every=1,
    ),
)


def example(name, iteration):
    messages = [user(f"é, {name}"), assistant(f"iteration {iteration}")]
    is_critic = name.startswith("critic")
    own = {"id": "q", "messages": messages, "kind": "kept" if is_critic else "first"}
    return own | {"learned": [-1]} if is_critic else own


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two iterations, laid down as a run leaves it, whose adapters are near the base: (directory, adapters)."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "finished")
    config = dataclasses.replace(TO_COME, run_dir=str(directory.path), iterations=3, lora=LORA)
    directory.take(config)
    directory.create(config)
    model = read_model_config(MODEL)
    adapters = {}
    for iteration in (1, 2):
        rng = np.random.default_rng(iteration)
        fresh = jax.jit(lambda key: init_society(model, LORA, key, 4))(jax.random.key(iteration))
        adapters[iteration] = jax.tree.map(
            lambda leaf, rng=rng: leaf + rng.normal(0, 3e-3, leaf.shape).astype("f4"), fresh
        )
        write_training_sets(directory.store, iteration, {name: [example(name, iteration)] for name in NAMES})
        checkpoints = Checkpoints(directory.store, layout.checkpoint(iteration))
        checkpoints.save(
            7, {"adapters": adapters[iteration]}, finished=True, lora=LORA, cost=Cost(), names=NAMES, plan="", total=7
        )
    directory.stop("failed", "stopped in iteration 3")
    return directory, adapters


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The last society, as `mft export --to peft` writes it."""
    out = tmp_path_factory.mktemp("exported") / "society"
    mft_jax.export(finished[0].path, out)
    return out


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "to_come.yaml"
    path.write_text(to_yaml(TO_COME))
    return path


def agent_of(adapters, index):
    return jax.tree.map(lambda leaf: leaf[index], adapters)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.mark.parametrize("iteration", [None, 1])
def test_export_to_peft(finished, tmp_path, mft, iteration):
    directory, adapters = finished
    chosen = ["--iteration", iteration] if iteration else []
    code, said, _ = mft("export", directory.path, "--to", "peft", tmp_path / "out", *chosen)
    assert (code, said.split()) == (0, [str(tmp_path / "out" / name) for name in NAMES])
    for index, name in enumerate(NAMES):
        lora, adapter = load_peft(tmp_path / "out" / name, read_model_config(MODEL))
        assert lora == LORA
        assert_same(adapter, agent_of(adapters[iteration or 2], index))
        settings = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(MODEL)


def test_the_base_is_named_so_that_peft_finds_it(finished, tmp_path, monkeypatch):
    """A checkpoint of the user's own by its absolute path, a hub's by its name."""
    directory, _ = finished
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(directory.path, copy.path)
    shutil.copytree(MODEL, tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mft_jax.session.checkpoint_directory", lambda path: {"own": tmp_path / "own"}.get(path, MODEL))
    for path, expected in (("own", str(tmp_path / "own")), ("org/model", "org/model")):
        config = dataclasses.replace(directory.config(), model=ModelSource(path=path))
        copy.config_file.write_text(to_yaml(config))
        out = tmp_path / path.replace("/", "_") / "out"
        mft_jax.export(copy.path, out, agents=["critic_1"])
        settings = json.loads((out / "critic_1" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == expected


@pytest.mark.torch
def test_export_merged(finished, tmp_path, mft):
    """Transformers loads model, tokenizer and template, and computes what the agent computes here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, adapters = finished
    chosen = ("--agents", "critic_1", "generator_0", "--max-shard-size", "80KB")
    code, said, _ = mft("export", directory.path, tmp_path / "out", "--to", "merged", *chosen)
    assert code == 0
    assert sorted(said.split()) == [str(tmp_path / "out" / name) for name in ("critic_1", "generator_0")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["critic_1", "generator_0"]
    merged = tmp_path / "out" / "critic_1"
    assert len(list(merged.glob("model-*-of-00003.safetensors"))) == 3
    messages = [user("What is 1+2*3?")]
    encode = AutoTokenizer.from_pretrained(merged).apply_chat_template
    tokens = np.array(encode(messages, add_generation_prompt=True, return_dict=False))[None]
    assert tokens[0].tolist() == load_chat(MODEL).prompt(messages)
    graphdef, base = load_base(MODEL, read_model_config(MODEL))
    scale = jnp.float32(LORA.scale)
    run = jax.jit(lambda base, weights: nnx.merge(graphdef, base)(tokens, Adapter(weights, scale)))
    expected = run(base, agent_of(adapters[2], 3))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(merged)(torch.tensor(tokens)).logits.numpy()
    assert np.abs(logits - expected).max() <= 2e-4 * expected.std()
    assert np.abs(logits - run(base, agent_of(adapters[2], 0))).max() > 1e-2 * expected.std()


def test_export_chats(finished, tmp_path, mft):
    """Of every finished iteration, or of one; iteration 3 was never finished."""
    directory, _ = finished
    assert mft("export", directory.path, "--to", "chat-jsonl", tmp_path / "all")[0] == 0
    written = sorted(str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*.jsonl"))
    assert written == [f"iteration_{k}/{name}.jsonl" for k in (1, 2) for name in sorted(NAMES)]
    chats = [
        json.loads(line) for line in (tmp_path / "all" / "iteration_2" / "critic_0.jsonl").read_text().splitlines()
    ]
    assert chats == [{"messages": example("critic_0", 2)["messages"], "learned": [-1]}]
    first = json.loads((tmp_path / "all" / "iteration_2" / "generator_0.jsonl").read_text().splitlines()[0])
    assert first == {"messages": example("generator_0", 2)["messages"]}
    mft_jax.export(directory.path, tmp_path / "one", to="chat-jsonl", iteration=1, agents=["generator_1"])
    assert [path.name for path in (tmp_path / "one").rglob("*")] == ["iteration_1", "generator_1.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iteration", "3"], "has no finished iteration 3: there are 1, 2."),
        (["--agents", "generator_2"], "There is no agent 'generator_2'"),
        (["--to", "merged", "--max-shard-size", "big"], "The size of shards is 'big'"),
    ],
)
def test_a_wrong_export_is_one_sentence_and_writes_nothing(finished, tmp_path, mft, arguments, message):
    code, _, complaint = mft("export", finished[0].path, tmp_path / "out", "--to", "peft", *arguments)
    assert code == 1
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_export_never_writes_over_anything(finished, exported, tmp_path):
    for to in ("peft", "merged", "chat-jsonl"):
        with pytest.raises(UserError, match="is not empty: give a new directory"):
            mft_jax.export(finished[0].path, exported, to=to)
    with pytest.raises(UserError, match="is not a run"):
        mft_jax.export(tmp_path, tmp_path / "out")


class Interrupted(Exception):
    pass


class Remarks(SilentReporter):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def imported(exported, tmp_path_factory, answering):
    """Two runs that start from the exported society, one of them interrupted before it trains, and started again.

    Gives their directories, what the starts said, and the weights that each start began to train with.
    """
    directories = [RunDirectory(tmp_path_factory.mktemp("imported") / name) for name in ("interrupted", "straight")]
    configs = [dataclasses.replace(TO_COME, run_dir=str(directory.path)) for directory in directories]
    remarks, starts, train = Remarks(), [], stages.train

    def watched_train(step, base, state, *rest, **options):
        starts.append(jax.device_get(state.adapters))
        if len(starts) == 1:
            raise Interrupted
        return train(step, base, state, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "train", watched_train)
        for config in configs:
            mft_jax.import_adapters(config, [exported])
        with pytest.raises(Interrupted):
            experiment.run(configs[0], remarks, answering)
        for config in configs:
            experiment.run(config, remarks, answering)
    return directories, remarks.said, starts


def stacked(directory, iteration=1):
    """The weights of a finished iteration, stacked in the order of NAMES."""
    _, weights = read_adapters(directory, iteration, read_model_config(MODEL))
    assert tuple(weights) == NAMES
    return jax.tree.map(lambda *leaves: np.stack(leaves), *weights.values())


def imported_society(directory):
    """(what the imported adapters are, their names, their stacked weights)."""
    info = latest_info(directory.store, layout.INITIAL)
    fresh = jax.eval_shape(lambda key: init_society(read_model_config(MODEL), info.lora, key, 4), jax.random.key(0))
    read = Checkpoints(directory.store, layout.INITIAL, read_only=True)
    return info.lora, info.names, read.restore(0, {"adapters": fresh})["adapters"]


def test_a_run_starts_from_imported_adapters(finished, imported):
    """Its first optimizer step has them bit for bit, whether it was interrupted or not, and moves them."""
    directories, said, starts = imported
    assert len(starts) == 3
    for start in starts:
        assert_same(start, jax.device_get(finished[1][2]))
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (stacked(directories[1]), starts[0])), strict=True)
    ]
    assert min(moved) > 0
    told = "The agents start from the adapters in {}: rank 4, alpha 6, on q_proj, down_proj."
    places = [directories[0].initial, directories[0].initial, directories[1].initial]
    assert [remark for remark in said if "start from" in remark] == [told.format(place) for place in places]


def test_its_first_debate_is_theirs(imported, answering):
    """The base model, which fresh adapters are, says other things to the same questions."""
    said = imported[0][1].debate_file(1).read_text().splitlines()
    setup = prepare(dataclasses.replace(TO_COME, lora=LORA), answering)
    fresh = setup.debate(setup.fresh_society(), name="train/1")
    untuned = [transcript.to_json() for transcript in fresh.run(setup.task.train)[0]]
    assert [json.loads(json.dumps(line)) for line in untuned] != [json.loads(line) for line in said]


def test_a_restart_from_the_base_is_one_from_the_imported_adapters(
    exported, finished, tmp_path, answering, monkeypatch
):
    """In every iteration; what was imported is what the run calls its base."""
    tuning = dataclasses.replace(TO_COME.finetuning, restart_from_base=True)
    config = dataclasses.replace(TO_COME, run_dir=str(tmp_path / "run"), iterations=2, finetuning=tuning)
    mft_jax.import_adapters(config, [exported])
    starts, train = [], stages.train
    watched = lambda step, base, state, *rest, **o: (
        starts.append(jax.device_get(state.adapters)) or train(step, base, state, *rest, **o)
    )
    monkeypatch.setattr(stages, "train", watched)
    experiment.run(config, session=answering)
    assert len(starts) == 2
    for start in starts:
        assert_same(start, jax.device_get(finished[1][2]))


def test_an_interrupted_run_ends_with_the_same_bytes(imported):
    directories, _, _ = imported
    files = [
        {
            str(path.relative_to(d.path)): path.read_bytes()
            for path in d.path.rglob("*.jsonl")
            if "journal" not in path.name
        }
        for d in directories
    ]
    for contents in files:
        del contents["metrics.jsonl"]  # has times
    assert len(files[0]) == 2 + 4
    assert files[0] == files[1]
    assert_same(*map(stacked, directories))


def test_rank_alpha_and_targets_go_into_the_runs_configuration(exported, imported):
    for directory in imported[0]:
        config = dataclasses.replace(TO_COME, run_dir=str(directory.path), lora=LORA)
        assert directory.config() == config
        remarks = Remarks()
        experiment.run(dataclasses.replace(config, lora=TO_COME.lora), remarks)  # the same command once more
        assert "is finished; nothing to do" in remarks.said[-1]
        with pytest.raises(UserError, match="is a run already: import adapters into a new directory"):
            mft_jax.import_adapters(config, [exported])


def test_the_import_command(finished, exported, tmp_path, mft, config_file):
    code, said, _ = mft("import-adapters", tmp_path / "run", exported, "--config", config_file)
    assert code == 0
    assert "4 adapters (rank 4, alpha 6) are in" in said
    assert f"mft run {config_file} --run-dir {tmp_path / 'run'} starts from them." in said
    lora, names, adapters = imported_society(RunDirectory(tmp_path / "run"))
    assert (lora, names) == (LORA, NAMES)
    assert_same(adapters, finished[1][2])
    # Another number of agents is found out before the run begins: the directory can still be used.
    code, _, complaint = mft("run", config_file, "--run-dir", tmp_path / "run", "--debate.agents", "3")
    assert code == 1
    assert "holds the adapters generator_0, generator_1, critic_0, critic_1, expected generator_0," in complaint
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["initial"]


def test_adapters_given_one_by_one_keep_their_order(finished, exported, tmp_path):
    config = dataclasses.replace(TO_COME, run_dir=str(tmp_path / "run"))
    order = (2, 0, 3, 1)
    (tmp_path / "run" / ".initial.tmp" / "0").mkdir(parents=True)  # an import was killed here
    assert mft_jax.import_adapters(config, [exported / NAMES[i] for i in order]) == LORA
    lora, names, adapters = imported_society(RunDirectory(tmp_path / "run"))
    assert (lora, names) == (LORA, NAMES)
    assert_same(adapters, jax.tree.map(lambda leaf: leaf[np.array(order)], finished[1][2]))
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["initial"]
    with pytest.raises(UserError, match="holds imported adapters already: delete it"):
        mft_jax.import_adapters(config, [exported])


@pytest.mark.parametrize(
    ("give", "arguments", "message"),
    [
        (lambda exported: [exported], ["--debate.agents", "3"], "holds 4 adapters (critic_0, critic_1, generator_0,"),
        (
            lambda exported: [exported / "critic_0"] * 3,
            [],
            "3 adapters were given, expected 4, for generator_0, generator_1,",
        ),
        (lambda exported: [exported.parent / "nowhere"] * 4, [], "adapter_config.json does not exist"),
        (lambda exported: [exported], ["--model.path", "./nowhere"], "There is no checkpoint at ./nowhere"),
        (lambda exported: [exported], ["--debate.agents", "0"], "debate.agents is 0, expected at least 1"),
    ],
)
def test_a_wrong_import_is_one_sentence_and_writes_nothing(
    exported, tmp_path, mft, config_file, give, arguments, message
):
    run = tmp_path / "run"
    code, _, complaint = mft("import-adapters", run, *give(exported), "--config", config_file, *arguments)
    assert code == 1
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not run.exists()


def test_adapters_of_one_run_are_of_one_kind(exported, tmp_path):
    """The odd one is named, and how it is odd."""
    lora, adapter = load_peft(exported / "critic_1", read_model_config(MODEL))
    config = dataclasses.replace(TO_COME, run_dir=str(tmp_path / "run"))
    society = [exported / name for name in NAMES[:3]]
    save_peft(adapter, tmp_path / "alpha", dataclasses.replace(lora, alpha=8.0), None)
    with pytest.raises(UserError, match=r"alpha has alpha 8\.0, expected 6\.0 as in \S+generator_0"):
        mft_jax.import_adapters(config, [*society, tmp_path / "alpha"])
    save_peft({"q_proj": adapter["q_proj"]}, tmp_path / "targets", lora, None)
    with pytest.raises(UserError, match=r"targets has targets \('q_proj',\), expected \('q_proj', 'down_proj'\)"):
        mft_jax.import_adapters(config, [*society, tmp_path / "targets"])
    assert not (tmp_path / "run").exists()


def test_a_directory_of_something_else_is_left_alone(exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and not a run \(it holds notes\.txt"):
        mft_jax.import_adapters(dataclasses.replace(TO_COME, run_dir=str(tmp_path)), [exported])
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_an_initial_directory_without_adapters_is_named(tmp_path):
    (tmp_path / "run" / "initial").mkdir(parents=True)
    with pytest.raises(UserError, match="initial holds no imported adapters: delete it"):
        experiment.run(dataclasses.replace(TO_COME, run_dir=str(tmp_path / "run")))


def test_the_commands_explain_themselves(mft):
    code, said, _ = mft("--help")
    assert code == 0
    assert "mft export RUN_DIR --to peft|merged|chat-jsonl OUT" in said
    assert "mft import-adapters RUN_DIR PEFT_DIR... --config YAML" in said
    for command, told in (("export", "--max-shard-size"), ("import-adapters", "--debate.agents")):
        code, said, _ = mft(command, "--help")
        assert code == 0
        assert told in said
    code, said, complaint = mft("import-adapters", "run", "adapters")
    assert code == 2
    assert "--config" in said + complaint


def test_an_adapter_of_another_model_of_the_hub_is_refused(exported, tmp_path):
    """Two models can have one shape, so their names decide."""
    shutil.copytree(exported, tmp_path / "society")
    for name in NAMES:
        path = tmp_path / "society" / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/one"}))
    config = dataclasses.replace(TO_COME, run_dir=str(tmp_path / "run"), model=ModelSource(path="org/two"))
    with pytest.raises(UserError, match=r"generator_0 is an adapter of org/one, expected one of org/two"):
        mft_jax.import_adapters(config, [tmp_path / "society"])
    assert not (tmp_path / "run").exists()


def test_adapters_that_are_not_finite_are_refused_by_name(exported, tmp_path, mft, config_file):
    """A run would stop at their first token otherwise."""
    shutil.copytree(exported, tmp_path / "society")
    lora, adapter = load_peft(exported / "critic_0", read_model_config(MODEL))
    adapter["q_proj"]["a"][0, 2, 3] = np.nan
    shutil.rmtree(tmp_path / "society" / "critic_0")
    save_peft(adapter, tmp_path / "society" / "critic_0", lora, None)
    code, _, complaint = mft("import-adapters", tmp_path / "run", tmp_path / "society", "--config", config_file)
    assert code == 1
    assert "critic_0" in complaint
    assert "layers.0.self_attn.q_proj.lora_A" in complaint
    assert not (tmp_path / "run").exists()
