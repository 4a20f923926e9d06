"""Methods in modules of the user: how they are found, and what is said about those that cannot be run."""

import dataclasses
import sys

import pytest

from mft_jax.config import ExperimentConfig
from mft_jax.debate import Protocol
from mft_jax.errors import UserError
from mft_jax.methods import make_method

MODULE = '''
"""Methods."""
import dataclasses
from mft_jax import Method, Protocol, UserError, make_method

def same(config):
    return dataclasses.replace(make_method("multiagent_ft", config), restart=True)

def untuned(config):
    return Method(name="x", protocol=Protocol(speakers=((None,) * 4,)))

def raises(config):
    return 1 / 0

def leaves(config):
    raise SystemExit(3)

def refuses(config):
    raise UserError("It needs more agents.")

def returns_text(config):
    return "debate"

def ragged(config):
    return Method(name="x", protocol=Protocol(speakers=((None, None), (None,))))

def silent(config):
    return Method(name="x", protocol=Protocol(speakers=()))

def unknown_speaker(config):
    return Method(name="x", protocol=Protocol(speakers=(("someone",),)))

def twice(config):
    lessons = same(config).lessons
    return Method(name="x", protocol=untuned(config).protocol, lessons=lessons[:1] * 2)

def badly_named(config):
    lesson = dataclasses.replace(same(config).lessons[0], adapter="../up")
    return Method(name="x", protocol=untuned(config).protocol, lessons=(lesson,))

def without_protocol(config):
    return Method(name="x", protocol=None)

def one_speaker(config):
    return Method(name="x", protocol=Protocol(speakers=5))

def telepathic(config):
    return Method(name="x", protocol=Protocol(speakers=((None,),), shows="telepathy"))

def no_list(config):
    return Method(name="x", protocol=untuned(config).protocol, lessons=5)

def without_settings(config):
    lesson = dataclasses.replace(same(config).lessons[0], settings=None)
    return Method(name="x", protocol=untuned(config).protocol, lessons=(lesson,))

def named_stream(config):
    lesson = dataclasses.replace(same(config).lessons[1], stream="a")
    return Method(name="x", protocol=untuned(config).protocol, lessons=(same(config).lessons[0], lesson))

number = 3
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The module own_methods, and two modules that cannot be imported."""
    (tmp_path / "own_methods.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "unfinished.py").write_text("def method(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_methods.py"
    for name in ("own_methods", "broken", "unfinished"):
        sys.modules.pop(name, None)


def test_a_method_of_the_user_has_its_full_name():
    config = ExperimentConfig()
    method = make_method("own_methods:same", config)
    expected = dataclasses.replace(make_method("multiagent_ft", config), restart=True, name="own_methods:same")
    assert method == expected
    assert make_method("own_methods:untuned", config).protocol == Protocol(speakers=((None,) * 4,))


def test_settings_for_all_methods_apply_to_it():
    debate = dataclasses.replace(ExperimentConfig().debate, stop_at_agreement="training")
    assert make_method("own_methods:same", ExperimentConfig(debate=debate)).protocol.stops == "agreement"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_methodz:same", r"needs the module own_methodz, which was not found: put own_methodz\.py beside"),
        ("own_methods.deeper:same", r"needs the module own_methods\.deeper, which was not found: put own_methods\.py"),
        ("own_methods:sam", r"needs the function sam, which .*own_methods\.py does not have\. Did you mean own_methods:same\?"),
        ("own_methods:zzzz", r"needs the function zzzz, which .*own_methods\.py does not have\.$"),
        ("own_methods:number", r"number in .*own_methods\.py is 3, expected a function of the configuration"),
        ("own_methods:raises", r"own_methods:raises in .* raised ZeroDivisionError: division by zero \(.*py, line 13\)"),
        ("own_methods:leaves", r"raised SystemExit: 3 \(.*py, line 16\)"),
        ("own_methods:refuses", r"^It needs more agents\.$"),
        ("own_methods:returns_text", r"returned str 'debate', expected an mft_jax\.Method"),
        ("own_methods:ragged", r"speakers \(\(None, None\), \(None,\)\), expected one row per round"),
        ("own_methods:silent", r"speakers \(\), expected one row per round"),
        ("own_methods:unknown_speaker", r"speaker 'someone', but no lesson for it: its adapters are none"),
        ("own_methods:twice", r"two lessons for one adapter: generator_0, generator_0"),
        ("own_methods:badly_named", r"adapter named '\.\./up', expected letters"),
        ("own_methods:without_protocol", r"without_protocol has the protocol None, expected Protocol\.$"),
        ("own_methods:one_speaker", r"has the protocol\.speakers 5, expected a tuple\.$"),
        ("own_methods:telepathic", r"has the protocol\.shows 'telepathy', expected one of summary, answers, nothing, true"),
        ("own_methods:no_list", r"has the lessons 5, expected a tuple\.$"),
        ("own_methods:without_settings", r"has the lessons\[0\]\.settings None, expected RoleConfig\.$"),
        ("own_methods:named_stream", r"has the lessons\[1\]\.stream 'a', expected int\.$"),
        ("broken:method", r"The module broken of .* raised ModuleNotFoundError: .*nothing_of_this_name.*line 1\)"),
        ("unfinished:method", r"The module unfinished of .* raised SyntaxError: "),
        (":method", r"':method' is no name of a method of your own: write module:function"),
        ("a b:method", r"is no name of a method of your own"),
        ("module:", r"is no name of a method of your own"),
    ],
)  # fmt: skip
def test_methods_that_cannot_be_run(name, message):
    with pytest.raises(UserError, match=message):
        make_method(name, ExperimentConfig())
