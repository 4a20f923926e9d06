"""The command: which function it calls with what, and what a person sees. The library is replaced by functions that note
their arguments, so that nothing slow is imported."""

import dataclasses
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mft_jax import __version__, cli
from mft_jax.arguments import read_arguments
from mft_jax.config import AskOptions, LoraConfig, from_dict, to_yaml
from mft_jax.errors import UserError
from mft_jax.report.progress import TerminalReporter
from tests.report.made import TUNED, result, stage, status

STORED = from_dict({"iterations": 4, "task": {"name": "gsm8k", "eval_questions": 50, "data_dir": "gsm8k_files"}})


@pytest.fixture
def calls(monkeypatch):
    """What the library was called with: [(function, positional arguments, named arguments), ...]."""
    made = []
    results = {"run": [result(), result(**TUNED)], "evaluate": result(task="gsm8k"), "export": ["out/generator_0"]}
    results |= {"import_adapters": LoraConfig(rank=4, alpha=6.0), "read_status": status()}

    def note(name):
        def function(*arguments, **named):
            made.append((name, arguments, named))
            found = results[name]
            if isinstance(found, BaseException):
                raise found
            return found

        return function

    methods = lambda name, config: SimpleNamespace(adapters=[f"agent_{n}" for n in range(2 * config.debate.agents)])
    stored = lambda path: SimpleNamespace(config=lambda: STORED)
    modules = {
        "experiment": {"run": note("run"), "evaluate": note("evaluate")},
        "exchange": {"export": note("export"), "import_adapters": note("import_adapters")},
        "methods": {"make_method": methods},
        "runs.directory": {"RunDirectory": stored},
        "runs.status": {"read_status": note("read_status")},
    }
    for name in ("bench", "grid"):  # with what they import: loaded later, they would find the replacements
        importlib.import_module(f"mft_jax.{name}")
    for name, functions in modules.items():
        monkeypatch.setitem(sys.modules, f"mft_jax.{name}", SimpleNamespace(**functions))
    monkeypatch.setenv("COLUMNS", "100")
    return SimpleNamespace(made=made, results=results)


@pytest.fixture
def config_file(tmp_path):
    def write(name, **settings):
        path = tmp_path / name
        path.write_text(to_yaml(from_dict(settings)))
        return str(path)

    return write


# mft run


def test_run_takes_the_file_and_the_options(calls, mft, config_file):
    path = config_file("c.yaml", seed=7, debate={"agents": 2}, task={"name": "gsm8k", "math_levels": [5]})
    code, said, complaint = mft(
        "run", path, "--run-dir", "runs/mine", "--sampling.max-new-tokens", "512", "--finetuning.remat",
        "--lora.targets", "q_proj", "v_proj", "--finetuning.critic.learning-rate", "2e-4", "--baselines", "base",
        "--method", "debate", "--model.path", "None", "--task.data_dir", "files",
    )  # fmt: skip
    assert (code, complaint) == (0, "")
    ((name, (config, reporter), _),) = calls.made
    assert name == "run"
    assert isinstance(reporter, TerminalReporter)
    expected = {
        "seed": 7, "debate": {"agents": 2}, "run_dir": "runs/mine", "sampling": {"max_new_tokens": 512},
        "finetuning": {"remat": True, "critic": {"learning_rate": 2e-4}}, "lora": {"targets": ["q_proj", "v_proj"]},
        "baselines": ["base"], "method": "debate",
        "task": {"name": "gsm8k", "math_levels": [5], "data_dir": "files"},
    }  # fmt: skip
    assert config == from_dict(expected)
    assert "gsm8k, 200 held-out questions" in said
    assert "72.0 ± 3.5" in said
    assert said.endswith("Everything is in runs/mine.\n")


@pytest.mark.parametrize(
    "arrange",
    [
        lambda path, other: [path, "--task.train-path", other],
        lambda path, other: ["--task.train-path", other, path],
        lambda path, other: [f"--task.train-path={other}", path],
        lambda path, other: ["--run-dir", "r.yml", "--task.train-path", other, "--seed", "7", path],
        lambda path, other: ["--task.train-path", other, "--lora.targets", "q_proj", "v_proj", path],
        lambda path, other: ["--task.train-path", other, "--", path],
    ],
)
def test_the_configuration_is_the_positional_argument(calls, mft, config_file, arrange):
    """Whatever the value of another option ends in."""
    path, other = config_file("mine.yaml", seed=7), config_file("other.yaml", seed=8)
    code, _, complaint = mft("run", *arrange(path, other))
    assert (code, complaint) == (0, "")
    (config, _) = calls.made[0][1]
    assert (config.seed, config.task.train_path) == (7, other)


def test_the_configuration_may_have_any_name(calls, mft, config_file):
    path = config_file("settings [bold].txt", seed=7)
    assert mft("run", path)[0] == 0
    assert calls.made[0][1][0].seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CONFIG.yaml"),
        (("--seed", "1"), "CONFIG.yaml"),
        (("a.yaml", "b.yaml"), "b.yaml"),
        (("a.yaml", "--sampling.temprature", "1"), "Perhaps you meant"),
        (("a.yaml", "--seed", "one"), "invalid literal for int()"),
        (("a.yaml", "--finetuning.critic-rule", "half"), "released_code"),
    ],
)
def test_wrong_arguments_are_explained(calls, mft, arguments, message):
    code, said, complaint = mft("run", *arguments)
    assert (code, said) == (2, "")
    assert message in complaint
    assert calls.made == []


def test_values_out_of_range_are_one_sentence(calls, mft, config_file):
    path = config_file("c.yaml")
    for arguments, message in {
        ("--lora.alpha", "nan"): "lora.alpha is nan, expected a finite number.",
        ("--finetuning.beta1", "2"): "finetuning.beta1 is 2.0, expected at least 0 and below 1.",
        ("--mesh.agent", "2"): "debate.agents is 3, expected a multiple of mesh.agent = 2.",
    }.items():
        assert mft("run", path, *arguments) == (1, "", f"mft: command line: {message}\n")
    assert calls.made == []


def test_a_broken_configuration_is_one_sentence(calls, mft, tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 1\nseed: 2\n")
    code, _, complaint = mft("run", tmp_path / "c.yaml")
    assert (code, complaint.count("\n")) == (1, 1)
    assert "line 2: the key 'seed' was already given in line 1" in complaint
    code, _, complaint = mft("run", tmp_path / "nowhere\x1b[2J.yaml")
    assert (code, complaint.count("\n")) == (1, 1)
    assert "nowhere.yaml (No such file or directory)" in complaint
    assert calls.made == []


def test_help_shows_the_values_of_the_configuration(mft, config_file):
    code, said, _ = mft("run", "--help")
    assert code == 0
    assert "CONFIG.yaml" in said
    assert "--sampling.top-p" in said
    assert "Nucleus: the smallest set of tokens" in " ".join(said.replace("│", "").split())
    assert "(default: 0.9)" in said
    code, said, _ = mft("run", config_file("c.yaml", sampling={"top_p": 0.125}), "--help")
    assert code == 0
    assert "(default: 0.125)" in said


# The other commands


def test_export(calls, mft):
    arguments = ("runs/mine", "--to", "merged", "out", "--iteration", "2", "--agents", "critic_1", "generator_0")
    assert mft("export", *arguments, "--max-shard-size", "2MB") == (0, "out/generator_0\n", "")
    named = {"to": "merged", "iteration": 2, "agents": ("critic_1", "generator_0"), "max_shard_size": "2MB"}
    assert calls.made == [("export", ("runs/mine", "out"), named)]
    assert mft("export", "runs/mine", "--to", "gguf", "out")[0] == 2
    assert mft("export", "runs/mine", "--to", "peft")[0] == 2


def test_import_adapters(calls, mft, config_file):
    path, other = config_file("c.yaml", model={"thinking": True}, debate={"rounds": 5}), config_file("other.yaml")
    options = ("--config", path, "--model.path", other, "--debate.agents", "2")
    code, said, complaint = mft("import-adapters", "runs/next", "agents/a", "agents/b", *options)
    assert (code, complaint) == (0, "")
    ((name, (config, adapters), _),) = calls.made
    assert (name, adapters) == ("import_adapters", ("agents/a", "agents/b"))
    expected = {"run_dir": "runs/next", "debate": {"agents": 2, "rounds": 5}}
    assert config == from_dict(expected | {"model": {"path": other, "thinking": True}})
    assert said == (
        f"4 adapters (rank 4, alpha 6) are in runs/next: mft run {path} --run-dir runs/next starts from them.\n"
    )
    code, _, complaint = mft("import-adapters", "runs/next", "agents")
    assert code == 2
    assert "--config CONFIG.yaml" in complaint


def test_status(calls, mft):
    calls.results["read_status"] = status(stages=(stage("iteration 1: debate", 5, 20),), state="interrupted")
    code, said, _ = mft("status", "runs/mine")
    assert code == 0
    assert calls.made == [("read_status", ("runs/mine",), {})]
    assert "runs/mine: interrupted" in said
    assert "5/20 questions" in said
    calls.results["read_status"] = UserError("nowhere is not a run: give the directory of a run.")
    assert mft("status", "nowhere") == (1, "", "mft: nowhere is not a run: give the directory of a run.\n")


def test_eval_on_another_task(calls, mft):
    code, said, _ = mft(
        "eval", "runs/mine", "--task", "math", "--eval-questions", "9", "--data-dir", "files", "--label", "hard",
        "--iteration", "2",
    )  # fmt: skip
    assert code == 0
    ((_, (run_dir, task), named),) = calls.made
    assert run_dir == "runs/mine"
    assert (task.name, task.train_questions, task.eval_questions, task.data_dir) == ("math", 0, 9, "files")
    assert (named["iteration"], named["label"]) == (2, "hard")
    assert "gsm8k, 200 questions" in said  # as the result says


def test_eval_on_other_questions_of_the_runs_task(calls, mft):
    assert mft("eval", "runs/mine", "--task", "gsm8k", "--cache-dir", "cache")[0] == 0
    assert calls.made[0][1][1] == dataclasses.replace(STORED.task, cache_dir="cache")
    assert calls.made[0][2]["iteration"] is None


def test_eval_with_other_speakers_on_the_questions_of_the_run(calls, mft):
    assert mft("eval", "runs/mine", "--speakers", "swapped")[0] == 0
    assert calls.made[0][1][1] == STORED.task
    assert calls.made[0][2]["speakers"] == "swapped"


def test_eval_on_a_file(calls, mft):
    assert mft("eval", "runs/mine", "--task", "jsonl", "--eval-path", "q.jsonl")[0] == 0
    task = calls.made[0][1][1]
    assert (task.name, task.eval_path, task.train_path, task.eval_questions) == ("jsonl", "q.jsonl", None, 50)
    code, _, complaint = mft("eval", "runs/mine", "--task", "jsonl", "--eval-path", "q.jsonl", "--eval-questions", "0")
    assert (code, complaint.count("\n")) == (1, 1)
    assert "command line: task.eval_questions is 0, expected at least 1" in complaint
    code, _, complaint = mft("eval", "runs/mine", "--task", "jsonl")
    assert (code, complaint) == (1, "mft: mft eval --task jsonl needs the questions: give --eval-path FILE.\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], 'The question is missing: mft ask "QUESTION".'),
        (["."], 'The question is missing: mft ask . "QUESTION".'),  # a directory is no question
        ([" \n"], "The question is empty: write one, in quotes."),
        (["runs/mine", ""], "The question is empty: write one, in quotes."),
        (["what", "is", "2+3?"], "mft ask takes a question, and before it a run or a model, but got 3 words: put the"),
    ],
)
def test_what_is_asked_must_be_a_question(mft, words, reason):
    code, said, complaint = mft("ask", *words)
    assert (code, said, complaint.count("\n")) == (1, "", 1)
    assert complaint.startswith(f"mft: {reason}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-3 + 5?"], (None, "-3 + 5?", {})),
        (["run", "why?"], ("run", "why?", {})),
        (["run", "--method", "debate", "why?", "--seed", "2"], ("run", "why?", {"method": "debate", "seed": 2})),
        (["--temperature", "0", "why?"], (None, "why?", {"temperature": 0.0})),
    ],
)
def test_options_of_ask_may_stand_anywhere(words, expected):
    found = read_arguments(["ask", *words])
    source, question, options = expected
    assert found.asked() == (source, question)
    assert found.options == AskOptions(**options)


# What every command does


def test_the_commands_are_listed(mft):
    code, said, _ = mft("--help")
    assert code == 0
    for usage in (
        "mft run CONFIG.yaml [--field value ...] [--run-dir DIR]",
        "mft status RUN_DIR",
        "mft eval RUN_DIR --task NAME",
        "mft table RUN_DIR... [--against METHOD] [--answers]",
        'mft ask [RUN_DIR|MODEL] "QUESTION" [--json]',
        "mft plots RUN_DIR... -o DIR",
        "mft export RUN_DIR --to peft|merged|chat-jsonl OUT",
        "mft import-adapters RUN_DIR PEFT_DIR... --config YAML",
    ):
        assert usage in said
        command = usage.split()[1]
        assert mft(command, "--help")[0] == 0
    code, said, _ = mft()
    assert code == 2
    assert "mft import-adapters RUN_DIR PEFT_DIR..." in said


def test_the_version(mft):
    assert mft("--version") == (0, f"mft {__version__}\n", "")


def test_an_unknown_command_is_one_line(mft):
    listed = "run, status, eval, table, ask, plots, review, report, export, import-adapters, bench, plan"
    assert mft("fly", "configs/quickstart.yaml") == (
        2, "", f"mft: there is no command 'fly'; the commands are {listed}.\n"
    )  # fmt: skip


# mft plan


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--topology", "v5e-8"], "mft plan needs a configuration, or --against RUN_DIR, but not both."),
        (["CONFIG", "--against", "runs/x"], "mft plan needs a configuration, or --against RUN_DIR, but not both."),
        (["CONFIG"], "mft plan needs the slice to plan for: give --topology, for example --topology v5e-8."),
        (["--against", "runs/x", "--fit"], "--fit changes the settings of a run, which --against compares: give one"),
        (["CONFIG", "--topology", ""], "--topology is empty, expected the name of a slice, such as v5e-8, or here."),
        (
            ["CONFIG", "--topology", "here", "--price", "nan"],
            "--price is nan, expected at least 0 dollars per chip and hour",
        ),
        (
            ["CONFIG", "--topology", "here", "--price", "-1"],
            "--price is -1, expected at least 0 dollars per chip and hour.",
        ),
        (
            ["CONFIG", "--topology", "here", "--layers", "4", "2"],
            "--layers is 4 2, expected two numbers of layers from 1, the smaller",
        ),
    ],
)
def test_options_of_a_plan_that_do_not_go_together(mft, config_file, arguments, reason):
    arguments = [config_file("c.yaml") if argument == "CONFIG" else argument for argument in arguments]
    code, said, complaint = mft("plan", *arguments)
    assert (code, said) == (1, "")
    assert complaint.startswith(f"mft: {reason}")
    assert complaint.count("\n") == 1


HOSTILE = "runs/[/] [bold]mine[/bold] :smile:"


@pytest.mark.parametrize("end", ["", "\x1b[31m", "\n"])
def test_names_are_shown_literally(calls, mft, config_file, end):
    """A name with rich's markup, an emoji code, or a terminal escape neither breaks a command nor changes its output."""
    run_dir = HOSTILE + end
    calls.results["export"] = [f"{run_dir}/generator_0"]
    calls.results["read_status"] = status(path=run_dir, stages=(stage(HOSTILE, 1, 2),))
    calls.results["evaluate"] = result(task=HOSTILE)
    path = config_file("c.yaml")
    outputs = [
        mft("run", path, "--run-dir", run_dir),
        mft("export", run_dir, "--to", "peft", "out"),
        mft("import-adapters", run_dir, "agents", "--config", path),
        mft("status", run_dir),
        mft("eval", run_dir, "--task", "math"),
    ]
    for code, said, complaint in outputs:
        assert (code, complaint) == (0, "")
        assert HOSTILE in said
        assert "\x1b" not in said
    calls.results["run"] = UserError(f"{run_dir} is in use.")
    code, _, complaint = mft("run", path, "--run-dir", run_dir)
    assert code == 1
    assert complaint.startswith(f"mft: {HOSTILE}")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("It is broken:\nmend it."), 1, "mft: It is broken: mend it.\n"),
        (KeyboardInterrupt(), 130, "mft: interrupted; run the same command again to continue.\n"),
        (cli.signals.Terminated(), 75, "mft: terminated; run the same command again to continue.\n"),
    ],
)
def test_whatever_stops_a_command_is_one_line(calls, mft, config_file, raised, code, said):
    calls.results["run"] = calls.results["export"] = raised
    assert mft("run", config_file("c.yaml")) == (code, "", said)
    assert mft("export", "run", "--to", "peft", "out") == (code, "", said)


def test_a_fault_of_the_program_is_not_hidden(calls, mft, config_file):
    calls.results["run"] = ZeroDivisionError("a fault")
    with pytest.raises(ZeroDivisionError, match="a fault"):
        mft("run", config_file("c.yaml"))


def test_arguments_are_read_before_anything_slow_is_imported(config_file):
    """Neither help nor a mistake waits for JAX, whose import takes seconds."""
    code = (
        "import json, sys\nfrom mft_jax.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(json.dumps([end.code, sorted(sys.modules)]))"
    )
    for arguments, expected in (
        (["run", "--help"], 0),
        (["run", config_file("c.yaml"), "--seed", "one"], 2),
        (["run", config_file("c.yaml"), "--lora.alpha", "nan"], 1),
        (["status", "--help"], 0),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        exit_code, modules = json.loads(done.stdout.splitlines()[-1])
        assert exit_code == expected
        assert not {"jax", "numpy", "transformers", "orbax", "flax"} & set(modules)
