"""Configuration files, broken and hostile ones included: each is one sentence that names the file."""

import errno
import os
import pathlib
import time

import pytest

from mft_jax.config import ExperimentConfig, from_dict, from_yaml, load_config, to_yaml
from mft_jax.errors import UserError


@pytest.fixture
def refusal(tmp_path):
    """refusal(content) is the sentence that says what is wrong with a file of that content, without the file's name."""

    def load(content):
        path = tmp_path / "my.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as raised:
            load_config(path)
        sentence = str(raised.value)
        assert sentence.startswith(str(path))
        assert "\n" not in sentence
        assert len(sentence) < 500
        return sentence.removeprefix(str(path))

    return load


def test_round_trip(tmp_path):
    config = from_dict(
        {
            "run_dir": "größe [/] \udcff",  # a name with a byte that is not UTF-8
            "seed": 3,
            "lora": {"targets": ["q_proj"]},
            "finetuning": {"critic": {"learning_rate": "1e-3"}},
        }
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert from_yaml(to_yaml(config).encode(), "config.yaml") == config


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "\ufeffseed: 0\n", "null"])
def test_a_file_that_says_nothing_is_the_default(tmp_path, content):
    (tmp_path / "my.yaml").write_text(content, encoding="utf-8")
    assert load_config(str(tmp_path / "my.yaml")) == ExperimentConfig()


def test_values_are_what_they_look_like(tmp_path):
    """Also a name that looks like a date, and numbers in YAML's and in Python's form."""
    (tmp_path / "my.yaml").write_text(
        "run_dir: 2024-13-01\ntask: {name: 2024-01-01}\nfinetuning: {eps: 1e-6, clip_norm: 2.0e+1}\nseed: 1_000\n"
    )
    config = load_config(tmp_path / "my.yaml")
    assert (config.run_dir, config.task.name, config.seed) == ("2024-13-01", "2024-01-01", 1000)
    assert (config.finetuning.eps, config.finetuning.clip_norm) == (1e-6, 20.0)


def test_anchors_aliases_and_merges_work(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "finetuning:\n  generator: &role {learning_rate: 0.5, epochs: 7}\n  critic: {<<: *role, epochs: 9}\n"
    )
    finetuning = load_config(tmp_path / "my.yaml").finetuning
    assert (finetuning.generator.learning_rate, finetuning.generator.epochs) == (0.5, 7)
    assert (finetuning.critic.learning_rate, finetuning.critic.epochs) == (0.5, 9)


def test_a_key_that_is_given_twice_is_named_with_its_lines(refusal):
    said = refusal("seed: 1\ndebate: {agents: 3}\nseed: 2\n")
    assert said == " is not valid YAML: line 3: the key 'seed' was already given in line 1; keep one of the two."
    said = refusal('debate:\n  agents: 3\n  rounds: 2\n  "agents": 4\n')
    assert "line 4: the key 'agents' was already given in line 2" in said
    assert "the key 'seed' was already given in line 1" in refusal("{seed: 1, seed: 1}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("debate: [", "is not valid YAML: line 1: "),
        ("a: b: c", "is not valid YAML: line 1: mapping values are not allowed here"),
        ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream, but found another document"),
        ("seed: \x01", "is not valid YAML: "),
        ("run_dir: *nothing", "line 1: found undefined alias 'nothing'"),
        ("- seed\n- 3\n", ": the file is ['seed', 3], expected a mapping of fields."),
        ("[]", ": the file is [], expected a mapping of fields."),
        ("false", ": the file is False, expected a mapping of fields."),
        ("just words", ": the file is 'just words', expected a mapping of fields."),
        ("? [a, b]\n: 1\n", "is not valid YAML: line 1: while constructing a mapping, found unhashable key"),
        ("seed: .nan", ": seed is nan (float), expected int."),
        ("lora: {alpha: .inf}", ": lora.alpha is inf, expected a finite number."),
        ("lora: {alpha: nan}", ": lora.alpha is 'nan', expected a finite number."),
        ("seed: 0b_", " holds a value that YAML cannot read (invalid literal for int()"),
        ('seed: !!int ""', " holds a value that YAML cannot read (string index out of range): correct it, or quote it."),
        ("seed: !!bool maybe", " holds a value that YAML cannot read ('maybe'): correct it, or quote it."),
        ("seed: " + "9" * 5000, " holds a value that YAML cannot read (Exceeds the limit (4300 digits)"),
        ("seed: 0x" + "f" * 50000, ": seed is a number of thousands of digits, expected from -"),
        ("run_dir: !!python/object/apply:os.system [touch owned]", "line 1: the tag tag:yaml.org,2002:python/object"),
        ("run_dir: !!set {a, b}", "line 1: the tag tag:yaml.org,2002:set is not allowed"),
        (b"run_dir: caf\xe9\n", " is not UTF-8 text (byte 12 is 0xe9): save it as UTF-8."),
        ("seed: 1\n".encode("utf-16"), " is not UTF-8 text (byte 0 is 0xff): save it as UTF-8."),
        ("# " + "x" * 200_000, " has more than 100,000 bytes: give the path of a configuration."),
    ],
)  # fmt: skip
def test_a_broken_file(refusal, content, message):
    assert message in refusal(content)
    assert not pathlib.Path("owned").exists()


@pytest.mark.parametrize("content", ["[" * 20_000, "{a: " * 20_000, "- " * 20_000, "a: &a [*a, *a]", "? " * 20_000])
def test_a_file_that_is_nested_too_deeply_or_in_itself(refusal, content):
    assert "is nested too deeply" in refusal(content) or "more than 10,000 values" in refusal(content)


@pytest.mark.parametrize("item", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_stand_for_too_many_values(refusal, item):
    """Nine levels of ten aliases are a billion values, and merges would really make them."""
    lines = ["l0: &l0 {x: 1}"]
    lines += [f"l{n}: &l{n} {item.format(', '.join([f'*l{n - 1}'] * 10))}" for n in range(1, 10)]
    started = time.process_time()
    assert "more than 10,000 values once aliases are replaced" in refusal("\n".join(lines))
    assert time.process_time() - started < 2


def test_a_file_without_permission(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", refuse)  # root, who may run the tests, reads every file
    with pytest.raises(UserError, match=r"Cannot read the configuration .*my\.yaml \(Permission denied\)"):
        load_config(tmp_path / "my.yaml")


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the configuration .* \(Is a directory\): give the path"):
        load_config(tmp_path)
    with pytest.raises(UserError, match=r"Cannot read the configuration .*none\.yaml \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="has more than 100,000 bytes"):
        load_config("/dev/zero")
