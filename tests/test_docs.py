"""The documentation is correct: its Python runs, its commands are accepted, its files and settings exist."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shlex
import statistics
import sys
import typing

import jax
import numpy as np
import pytest
import tyro

import mft_jax
import mft_jax.setup
from mft_jax import cli
from mft_jax.arguments import NAMES, Ask, Bench, Eval, ImportAdapters, Run, read_arguments
from mft_jax.config import Change, ExperimentConfig, TaskConfig, from_dict, to_yaml, validate
from tests.config.settings import FIELDS
from tests.small_run import SMALL, adapters_of

ROOT = pathlib.Path(__file__).parent.parent
README, *DOCS = DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

# Reading Markdown


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def command_lines(path):
    """The lines of indented code blocks, with continuation lines joined; in YAML, the commands in comments."""
    text = path.read_text()
    if path.suffix == ".yaml":
        return re.findall(r"^#(?:.*:)? ((?:mft|for) .*)$", text, re.MULTILINE)
    return "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE)).replace("\\\n", " ").splitlines()


def inline_code(text):
    """The text between backquotes, outside code blocks."""
    prose = re.sub(r"^```.*?^```$|^    .*?$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def section(heading):
    """The section of the README with this heading."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)[1]


def rows(text):
    """The cells of a table's rows, without the header row."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells[1:] if not set("".join(row)) <= set("-|")]


def simple_commands(line):
    """The commands of a shell line, each as a list of words. Loops are unrolled and comments are removed."""
    loop = re.fullmatch(r"for (\w+) in ([^;]*); do (.*); done", line.strip())
    if loop:
        name, values, body = loop.groups()
        return [words for value in values.split() for words in simple_commands(body.replace(f"${name}", value))]
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= {"&", ";"}:
            found.append([])
        else:
            found[-1].append(word)
    return found


def commands(program):
    """All different commands of a program in the documents and in the comments of the configurations."""
    lines = [line for path in DOCUMENTS + CONFIGS for line in command_lines(path)]
    lines = [line for line in lines if re.search(rf"\b{program} |\b{program}$", line)]
    lines += [
        code for path in DOCUMENTS for code in inline_code(path.read_text()) if re.match(rf"{program}( |$)", code)
    ]
    found = [tuple(words) for line in lines for words in simple_commands(line) if words[:1] == [program]]
    return list(dict.fromkeys(found))


# Commands


def test_every_command_is_documented():
    assert {words[1] for words in commands("mft")} == {*NAMES, "--version"}
    assert len(commands("mft")) >= 20


@pytest.mark.parametrize("words", commands("mft"), ids=" ".join)
def test_mft_accepts_the_command(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(words))
    arguments = ["configs/quickstart.yaml" if word == "CONFIG.yaml" else word for word in words[1:]]
    if words[-1] == "--version":
        cli.main()
        assert capsys.readouterr().out == f"mft {mft_jax.__version__}\n"
    elif words[-1] == "--help":
        with pytest.raises(SystemExit) as end:
            read_arguments(arguments)
        assert end.value.code == 0
    elif len(arguments) == 1:  # only a mention of the command
        assert arguments[0] in NAMES
    else:
        check_values(read_arguments(arguments), arguments)


def check_values(options, arguments):
    """Asserts that every option has the value from the command line, and that all values are within their limits."""
    settings = options
    if isinstance(options, Run):
        settings = options.settings
        validate(settings)
    elif isinstance(options, Eval):
        validate(from_dict({"task": dataclasses.asdict(options.evaluated_task(from_dict({}).task))}))
    elif isinstance(options, ImportAdapters):
        assert pathlib.Path(options.config).exists()
    given = [i for i, word in enumerate(arguments) if word.startswith("--")]
    for i, end in zip(given, [*given, len(arguments)][1:], strict=True):
        names = arguments[i].removeprefix("--").replace("-", "_").split(".")
        value = options.hosts if isinstance(options, Run) and hasattr(options.hosts, names[0]) else settings
        if isinstance(options, Bench) and not hasattr(options, names[0]):
            value = options.settings
        if isinstance(options, Ask) and hasattr(options.options, names[0]):
            value = options.options
        *groups, name = names
        off = name.startswith("no_")  # --mesh.no-auto switches mesh.auto off
        for part in (*groups, name.removeprefix("no_")):
            value = getattr(value, part)
        if value is not off and isinstance(value, bool) and (i + 1 == end):  # a switch
            continue
        write = lambda one: f"{one:g}" if isinstance(one, float) else str(one)
        shown = list(map(write, value)) if isinstance(value, tuple) else [write(value)]
        assert shown == arguments[i + 1 : i + 1 + len(shown)]
        assert not isinstance(value, tuple) or end == i + 1 + len(value)


def test_pytest_accepts_the_command(pytestconfig):
    found = commands("pytest")
    assert len(found) == 5
    markers = [marker.split(":")[0] for marker in pytestconfig.getini("markers")]
    for words in found:
        for word, following in zip(words[1:], [*words, None][2:], strict=True):
            if word.startswith("-"):
                pytestconfig.getoption(word)  # raises ValueError for an unknown option
            elif word.startswith("tests/"):
                assert (ROOT / word).is_file()
            if word == "-m":
                assert following in markers


def test_pip_installs_an_extra_that_exists():
    extras = [extra for words in commands("pip") for word in words for extra in re.findall(r"\.\[(\w+)\]", word)]
    assert set(extras) == {"test", "encoder", "tpu", "cuda12", "gcs"}
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


def test_the_recipe_of_the_base_model():
    """Each run starts from the previous one, and has the sizes given in the text."""
    from mft_jax.base_model.demonstrations import STAGES
    from mft_jax.base_model.train import Recipe

    text = (ROOT / "docs/base_model.md").read_text()
    variables = dict(re.findall(r'^    (\w+)="(.*)"$', text, re.MULTILINE))
    lines = [
        re.sub(r"\$(\w+)", lambda name: variables[name[1]], line)
        for line in re.findall(r"^    (\$train .*)$", text, re.MULTILINE)
    ]
    assert all(line.startswith("python -m mft_jax.base_model.train ") for line in lines)
    recipes = [tyro.cli(Recipe, args=line.split()[3:]) for line in lines]
    assert [recipe.stage for recipe in recipes] == list(STAGES)
    assert [recipe.start for recipe in recipes] == [None, *(recipe.out for recipe in recipes[:-1])]
    assert [recipe.rows * recipe.row_tokens for recipe in recipes] == [1920, 3072, 3072, 3072, 3072]
    assert "1,920 tokens in the first run and 3,072 in the others" in " ".join(text.split())
    last_rows = {cells[0]: int(cells[1]) for cells in rows(text) if cells[0] in STAGES and len(cells) == 6}
    assert last_rows == {recipe.stage: recipe.steps for recipe in recipes}


# Names of files and settings


def test_links_point_to_existing_files():
    links = [(path, target) for path in DOCUMENTS for target in re.findall(r"\]\(([^)]+)\)", path.read_text())]
    local = [path.parent / target for path, target in links if "://" not in target]
    assert len(local) >= 4
    assert [target for target in local if not target.exists()] == []


def test_files_of_the_repository_exist():
    words = [word for path in DOCUMENTS for code in inline_code(path.read_text()) for word in code.split()]
    named = [word for word in words if re.match("(configs|docs|mft_jax|tests)/", word)]
    assert len(named) >= 10
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_the_modules_exist():
    modules = [cells[0].strip("`") for cells in rows(section("How it is built"))]
    assert len(modules) >= 9
    named = [*modules, *re.findall(r"`([\w/]+(?:\.py|/))`", section("How it is built"))]
    assert [name for name in named if not (ROOT / "mft_jax" / name).exists() and not (ROOT / name).exists()] == []


def test_the_settings_exist():
    groups = {name.split(".")[0] for name in FIELDS if "." in name}
    named = set()
    for path in DOCUMENTS:
        for code in inline_code(path.read_text()):
            name = re.match(r"(?:--)?([a-z]+(?:\.[a-z0-9_-]+)+)(?= |$)", code)
            if name and name[1].split(".")[0] in groups:
                named.add(name[1].replace("-", "_").replace(".no_", "."))  # --mesh.no-auto switches mesh.auto off
    assert len(named) >= 20
    assert named - set(FIELDS) == {"metrics.jsonl", "feedback.jsonl", "feedback.lock"}  # files of a run


def settings_with(change, kind=ExperimentConfig, prefix=""):
    """The settings that may be changed in this way when a run is resumed."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from settings_with(change, hint, f"{prefix}{name}.")
        elif change in getattr(hint, "__metadata__", ()):
            yield prefix + name


def test_the_settings_that_may_change():
    table = rows(section("Stopping, resuming, extending a run"))
    kinds = (Change.ANY_TIME, Change.NEXT_STEP, Change.NEXT_ITERATION, Change.GROW, Change.PLACE)
    for cells, change in zip(table, kinds, strict=True):
        named = re.findall(r"`([^`]+)`", cells[0])
        said = {name for name in FIELDS for part in named if name == part or name.startswith(f"{part}.")}
        assert said == set(settings_with(change)), change


def test_all_tasks_and_methods_are_documented():
    from mft_jax.methods import METHODS
    from mft_jax.tasks.load import NAMES as TASKS

    assert tuple(cells[0].strip("`") for cells in rows(section("Tasks"))) == TASKS
    assert [cells[0].strip("`") for cells in rows(section("Methods"))] == list(METHODS)
    assert set(re.findall(r"^- \*\*(\w+)\*\*:", section("Two commands"), re.MULTILINE)) < set(METHODS)


# Numbers that are given twice


def test_the_quickstart_table_is_the_same_in_readme_and_results():
    """The table and the times are the same in the README and in docs/results.md."""
    results = (ROOT / "docs/results.md").read_text()
    table = re.search(r"(?:^    .*\n)*^    method .*\n(?:^    .*\n)+", section("Two commands"), re.MULTILINE)[0]
    assert table.count("\n") == 7
    assert table in results
    seconds = r"\d+ min \d+ s"
    assert re.findall(seconds, section("Two commands")) == re.findall(seconds, results)


def test_the_plot_shows_the_quickstart_table():
    (described,) = re.findall(r"!\[([^]]*)\]\(docs/pictures/accuracy.svg\)", README.read_text())
    shown = re.findall(r"^    (\w+) +\d +(\d+\.\d) ±", section("Two commands"), re.MULTILINE)
    assert re.findall(r"\d+\.\d", described) == [accuracy for _, accuracy in shown]
    assert [name for name in dict(shown) if name not in described] == []
    svg = (ROOT / "docs/pictures/accuracy.svg").read_text()
    assert [name for name in dict(shown) if f">{name}<" not in svg] == []


def test_the_chart_shows_the_table():
    text = (ROOT / "docs/results.md").read_text()
    seeds = [cells for cells in rows(text) if cells[0] in ("0", "1", "2") and len(cells) == 10]
    mean = next(cells for cells in rows(text) if cells[0] == "mean")
    accuracies = np.array([cells[1:9] for cells in seeds], float)
    assert accuracies.shape == (3, 8)
    np.testing.assert_allclose(np.array(mean[1:9], float), accuracies.mean(axis=0), atol=0.051)
    (line,) = re.findall(r"^    line \[(.*)\]$", text, re.MULTILINE)
    assert line.split(", ") == mean[3:9]


# Python

# Few questions, with the shapes of tests.small_run, whose programs are then in the compilation cache.
FEW = dataclasses.replace(SMALL, task=TaskConfig(train_questions=4, eval_questions=4))


def run_blocks(path, directory):
    """Runs the Python blocks of a document in a directory. Returns (the variables, the output of each block)."""
    names, printed = {}, []
    with contextlib.chdir(directory):
        for block in python_blocks(path):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, str(path), "exec"), names)
            printed.append(output.getvalue())
    return names, printed


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """Runs the README's Python unchanged, in a directory where configs/quickstart.yaml is a small experiment."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "configs").mkdir()
    (directory / "configs" / "quickstart.yaml").write_text(to_yaml(FEW))
    names, printed = run_blocks(README, directory)
    return directory, names, printed


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracies_on_disk(run):
    """{(method, iteration): accuracy} from the transcripts of a run of one iteration."""
    files = {(name, 0): run / f"baselines/{name}/eval.jsonl" for name in ("base", "majority", "debate")}
    files["multiagent_ft", 1] = run / "iteration_1/eval/eval.jsonl"
    return {key: statistics.mean(float(line["correct"]) for line in lines_of(file)) for key, file in files.items()}


def test_a_run_from_python(readme):
    directory, names, printed = readme
    found = {(result.method, result.iteration): result.accuracy for result in names["results"]}
    assert found == accuracies_on_disk(directory / "runs/notebook")
    assert printed[0] == f"{[(*key, accuracy) for key, accuracy in found.items()]}\n"


def test_several_runs_of_a_session(readme):
    directory, names, printed = readme
    expected = [accuracies_on_disk(directory / f"runs/notebook-{seed}") for seed in (1, 2)]
    assert printed[1] == "".join(f"{seed} {list(run.values())}\n" for seed, run in zip((1, 2), expected, strict=True))
    assert names["setup"].session is names["session"]
    asked = [json.loads((directory / f"runs/notebook{end}/questions.json").read_text()) for end in ("", "-1", "-2")]
    assert len({tuple(questions["eval"]) for questions in asked}) == 3


def test_a_debate_of_the_base_model(readme):
    _, names, printed = readme
    transcripts, task = names["transcripts"], names["setup"].task
    assert [transcript.id for transcript in transcripts] == [question.id for question in task.eval]
    assert not any(usage.adapted for usage in names["usages"])
    first = transcripts[0]
    assert [message["role"] for message in first.agents[0].messages] == ["user", "assistant"] * 2
    assert first.correct == task.equivalent(first.vote, task.eval[0].gold)
    assert printed[2] == f"{first.agents[0].messages[-1]['content']} {first.vote} {first.correct}\n"


def test_scores_of_a_text(readme):
    """The model finds its own answers probable, and the questions, whose numbers are random, improbable."""
    _, names, printed = readme
    score, is_answer = names["score"], names["is_answer"]
    assert score.log_probs.shape == (len(names["ids"]),)
    assert score.log_probs.max() <= 0
    answers, prompts = score.log_probs[is_answer].mean(), score.log_probs[~is_answer].mean()
    assert -0.7 < answers < 0
    assert prompts < 2 * answers
    assert printed[3] == f"{answers:.2f} nats per token of the agent's answers (32,)\n"


def test_the_comparison_of_two_methods(tmp_path):
    run = mft_jax.RunDirectory(tmp_path / "runs/arithmetic-0")
    for file, correct in {
        run.evaluation_file(5): [True, True, True, False, True],
        run.baseline_file("debate"): [False, False, False, True, True],
    }.items():
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps({"correct": value}) + "\n" for value in correct))
    _, printed = run_blocks(ROOT / "docs/results.md", tmp_path)
    assert printed == ["PairedTest(only_first=3, only_second=1, difference=0.4, p_value=0.625)\n"]


def test_one_iteration_by_hand(finished, answering, tmp_path, monkeypatch):
    """The guide's steps give the transcripts, training sets and adapters of a run with the same configuration."""
    directory = finished[0]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text(to_yaml(SMALL))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(directory.path)
    monkeypatch.setattr(mft_jax.setup, "open_session", lambda *source: answering)
    names, printed = run_blocks(ROOT / "docs/guide.md", tmp_path)
    assert names["transcripts"] == [
        mft_jax.Transcript.from_dict(line) for line in lines_of(directory.debate_file(2))[:4]
    ]
    for name, own in names["examples"].items():
        assert own == lines_of(directory.training_set_file(1, name))
    tuned, stored = names["tuned"], adapters_of(directory, 1)
    for index, name in enumerate(tuned.society.names):
        pairs = zip(*map(jax.tree.leaves, (tuned.society.stacked.weights, stored[name])), strict=True)
        assert all((np.asarray(a[index]) == np.asarray(b)).all() for a, b in pairs)
    metrics = [line["loss"] for line in lines_of(directory.metrics_file) if line["iteration"] == 1]
    np.testing.assert_allclose(np.nanmean(tuned.loss, axis=1), metrics, rtol=1e-6)
    assert names["after"] == [line["correct"] for line in lines_of(directory.evaluation_file(1))]
    assert names["before"] == [line["correct"] for line in lines_of(directory.baseline_file("debate"))]
    assert printed[0] == f"{tuned.society.names}\n"


def test_a_method_of_the_user(finished, answering, tmp_path, monkeypatch):
    """The file of the page, beside the configuration, is run by the command. It differs only in what it learns."""
    first, second = python_blocks(ROOT / "docs/methods.md")
    assert len([line for line in first.splitlines() if line]) <= 20
    (tmp_path / "my_methods.py").write_text(f"{first}\n\n{second}")
    monkeypatch.setattr(mft_jax.setup, "open_session", lambda *source: answering)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path, run = tmp_path / "own.yaml", tmp_path / "run"
    path.write_text(to_yaml(dataclasses.replace(SMALL, method="my_methods:brief_ft", iterations=1, baselines=())))
    monkeypatch.setattr(sys, "argv", ["mft", "run", str(path), "--run-dir", str(run)])
    cli.main()
    (result,) = json.loads((run / "results.json").read_text())
    assert (result["method"], result["iteration"], result["n"]) == ("my_methods:brief_ft", 1, 8)
    assert (run / "iteration_1/debate/train.jsonl").read_bytes() == finished[0].debate_file(1).read_bytes()
    for n in range(2):
        brief, usual = (
            lines_of(directory / f"iteration_1/finetune/generator_{n}.jsonl") for directory in (run, finished[0].path)
        )
        lengths = sorted(len(example["messages"][-1]["content"]) for example in usual)
        assert len(brief) >= 2
        assert [len(e["messages"][-1]["content"]) for e in brief] == lengths[: (len(lengths) + 1) // 2]
        critic = f"iteration_1/finetune/critic_{n}.jsonl"
        assert (run / critic).read_bytes() == (finished[0].path / critic).read_bytes()
    trio = mft_jax.make_method("my_methods:trio", SMALL)
    assert (trio.adapters, trio.protocol.agents, trio.protocol.rounds) == (("solver",), 3, 1)


def test_all_python_blocks_are_run():
    found = {path.name: len(python_blocks(path)) for path in DOCUMENTS if python_blocks(path)}
    assert found == {"README.md": 4, "guide.md": 6, "methods.md": 2, "results.md": 1}


# Files of a run


def documented_files():
    """The file name patterns in the README's table of files."""
    named = [name for cells in rows(section("Files of a run")) for name in re.findall(r"`([^`]+)`", cells[0])]
    assert len(named) >= 13
    return named


def test_the_files_of_a_run(readme):
    """All documented files exist, and all existing files are documented."""
    from mft_jax.runs import layout
    from mft_jax.runs.lock import LOCK_FILE
    from mft_jax.runs.store import DAMAGED

    named, run = documented_files(), readme[0] / "runs/notebook"
    occasional = {
        "iteration_K/eval/diversity_NAME.jsonl",
        "iteration_K/collapsed.json",
        layout.FEEDBACK,
        layout.FEEDBACK_LOCK,
        "iteration_K/finetune/feedback.json",
        f"{layout.INITIAL}/",
        f"{layout.EVALUATIONS}/LABEL/",
        f"{DAMAGED}/",
    }
    assert occasional <= set(named)
    fill = lambda name: name.replace("METHOD", "debate").replace("K", "1").replace("NAME", "critic_1")
    assert [name for name in named if name not in occasional and not (run / fill(name)).exists()] == []
    patterns = [re.sub("METHOD|NAME|LABEL", r"\\w+", name.replace("K", r"\d+")) for name in named]
    transcripts = [pattern for pattern in patterns if re.search(r"(eval|train)\.jsonl$", pattern)]
    patterns += [pattern.replace(".jsonl", ".journal.jsonl") for pattern in transcripts]
    left = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    assert [name for name in left if not any(re.match(pattern, name) for pattern in patterns)] == []


def test_the_records_of_a_run(readme):
    """Journals, transcripts and results have the fields that are named in the README."""
    from mft_jax.sampling import Reason

    run, text = readme[0] / "runs/notebook", section("Files of a run")
    (record,) = lines_of(run / "iteration_1/debate/train.journal.jsonl")
    assert {"lines", "sha256", "cost", "counts"} <= record.keys()
    assert not (run / "iteration_1/debate/train.chunks").exists()
    assert set(typing.get_args(Reason)) <= set(inline_code(text))
    turns = lines_of(run / "iteration_1/debate/train.jsonl")[0]["agents"][0]["turns"]
    assert all(turn["end"] in typing.get_args(Reason) and turn["new_tokens"] > 0 for turn in turns)
    named = {"cut", "unanswered", "grading_timeouts", "wall_seconds", "device_seconds"}
    assert named <= set(inline_code(text))
    for result in json.loads((run / "results.json").read_text()):
        assert named | {"accuracy", "stderr", "diversity", "prompt_tokens", "new_tokens", "flops"} <= result.keys()
    assert json.loads((run / "run.json").read_text())["changes"] == []
