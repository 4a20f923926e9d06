"""The internals of math-verify, latex2sympy2_extended and ANTLR on which mft_jax.tasks.formulas depends.

pyproject.toml pins their versions. If one of these tests fails after an update, adapt `engine` or `parser`.
"""

import importlib.metadata
import inspect
import pathlib
import re

import pytest
from antlr4.atn.Transition import RuleTransition
from math_verify import grader

from mft_jax.tasks.formulas import engine, parser
from mft_jax.tasks.formulas.samples import SAMPLES

PYPROJECT = pathlib.Path(__file__).parents[3] / "pyproject.toml"
PINNED = ["math-verify", "latex2sympy2_extended", "antlr4-python3-runtime", "sympy"]


@pytest.mark.parametrize("package", PINNED)
def test_the_installed_version_is_the_pinned_one(package):
    (pinned,) = re.findall(rf'^  "{package}==(.*)",$', PYPROJECT.read_text(), re.MULTILINE)
    assert importlib.metadata.version(package) == pinned


@pytest.mark.parametrize(
    ("caller", "step", "replacement"),
    [
        ("sympy_expr_eq", "sympy_numeric_eq", engine.numeric_eq),
        ("sympy_expr_eq", "sympy_symbolic_eq", engine.symbolic_eq),
        ("sympy_expr_eq", "sympy_compare_sets", engine.compare_sets),
        ("sympy_compare_relational", "sympy_solve_and_compare", engine.solve_and_compare),
    ],
)
def test_math_verify_calls_the_replaced_steps(caller, step, replacement):
    """By their global names, and with arguments that the replacements accept."""
    assert step in getattr(grader, caller).__code__.co_names
    a, b, *precision = inspect.signature(getattr(grader, step)).parameters
    assert precision in ([], ["float_rounding", "numeric_precision"])
    inspect.signature(replacement).bind(a, b, *precision)


def rules(decision):
    """The rules that each alternative of a decision consists of."""
    alternatives = []
    for transition in parser.PSParser.atn.decisionToState[decision].transitions:
        names, state = [], transition.target
        while len(state.transitions) == 1:
            (following,) = state.transitions
            is_rule = isinstance(following, RuleTransition)
            if is_rule:
                names.append(parser.PSParser.ruleNames[following.ruleIndex])
            state = following.followState if is_rule else following.target
        alternatives.append(names)
    return alternatives


def test_the_grammar_has_the_alternatives_that_the_parser_predicts():
    assert rules(parser._FORMULA) == [["set_elements_relation"], ["set_elements"], ["set_relation"]]
    elements = sorted(rules(decision) for decision in parser._ELEMENTS)
    assert elements == [[["plus_minus_expr"], ["set_atom"], [last]] for last in ("expr", "relation")]
    assert rules(parser._FACTORS) == [["postfix"], []]
    assert rules(parser._SCRIPTS) == [["supexpr", "subexpr"], ["subexpr", "supexpr"], ["subexpr"], ["supexpr"], []]


def test_the_faster_parser_reads_the_same_and_seldom_needs_the_slower_one(monkeypatch):
    converter, created = parser._Latex2Sympy, []
    create_parser = converter.create_parser
    monkeypatch.setattr(converter, "parse_number", converter.parse_number)  # so that it is restored after the test
    monkeypatch.setattr(
        converter, "create_parser", lambda self, text: created.append(text) or create_parser(self, text)
    )
    parse = engine.parse_formula.__wrapped__  # without its cache
    texts = [*SAMPLES, r"\sqrt{x^2_1+1}", r"x\in(1,2)", r"x\in\{1,2\}", r"2^{n}_3", r"\int x|x|dx", "(1", "1+"]
    slow = [parse(text) for text in texts]
    assert all(slow[: len(SAMPLES)])
    with_slow_parser = len(created)
    created.clear()
    parser.install()
    assert [parse(text) for text in texts] == slow
    # Each text needs a parser, and each one that SLL cannot parse a second one.
    assert len(created) < 1.2 * with_slow_parser
