"""The grammar analysis of math-verify's LaTeX parser, made fast without a change of what it reads.

Where a rule of a grammar has alternatives, ANTLR takes the first one that fits all of the text. It decides this with the
whole context (LL), which takes most of the time of grading, or without (SLL), which is an order of magnitude faster. A
text that SLL reads without an error is read the same by LL; one that it cannot read is given to LL. `Predictions` has
shortcuts for the decisions which take SLL long, or in which it fails often. They keep to the same rule: an alternative is
passed over only if it cannot fit. So a wrong guess of a later one can only be an error, and then LL decides.
"""

import functools
from typing import Any

from antlr4 import Token
from antlr4.atn.ATNState import BasicBlockStartState, PlusLoopbackState
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.antlr_parser import PSParser
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy


def install() -> None:
    """Makes math-verify read formulas this way."""
    create_ll_parser = _Latex2Sympy.create_parser

    def create_parser(converter: Any, text: str) -> Any:
        parser = create_ll_parser(converter, text)
        slow = parser._interp
        parser._interp = Predictions(parser, slow.atn, slow.decisionToDFA, slow.sharedContextCache)
        parse_with_sll = parser.math

        def math() -> Any:
            try:
                return parse_with_sll()
            except Exception:  # the error listener's
                return create_ll_parser(converter, text).math()

        parser.math = math
        return parser

    _Latex2Sympy.create_parser = create_parser


def _decision(rule: int, kind: type) -> int:
    """The number of the decision of this kind in a rule of the grammar."""
    (found,) = (
        number
        for number, state in enumerate(PSParser.atn.decisionToState)
        if state.ruleIndex == rule and type(state) is kind
    )
    return found


def _first_tokens(rule: int) -> frozenset[int]:
    """The tokens that a rule can begin with."""
    return frozenset(PSParser.atn.nextTokens(PSParser.atn.ruleToStartState[rule]))


_FORMULA = _decision(PSParser.RULE_math, BasicBlockStartState)
_ELEMENTS = {
    _decision(rule, BasicBlockStartState) for rule in (PSParser.RULE_element, PSParser.RULE_element_no_relation)
}
_FACTORS = _decision(PSParser.RULE_unary, PlusLoopbackState)
_SCRIPTS = _decision(PSParser.RULE_atom_expr, BasicBlockStartState)

_SET_STARTS = _first_tokens(PSParser.RULE_set_atom)
_FACTOR_STARTS = _first_tokens(PSParser.RULE_postfix)
_SET_SIGNS = {
    PSParser.IN, PSParser.NOTIN, PSParser.ASSIGNMENT, PSParser.UNION, PSParser.INTERSECTION, PSParser.SUBSET, PSParser.SUPSET,
}  # fmt: skip
_BARS = {PSParser.BAR, PSParser.VERT, PSParser.NORM}  # they open a factor, or close one
_SCRIPT_SIGNS = {PSParser.CARET, PSParser.UNDERSCORE}
_FIRST_SCRIPT_ONLY = {1: 4, 2: 3}  # the alternatives with two scripts, in either order, and those with the first only


class Predictions(ParserATNSimulator):
    """The decisions of one parser."""

    def adaptivePredict(self, input: Any, decision: int, outerContext: Any) -> int:
        shortcut = self._shortcut(input, decision)
        if shortcut is not None:
            return shortcut
        # "dx" may end an integral, or be a factor of it: only the context tells.
        in_doubt = decision == _FACTORS and input.LA(1) == PSParser.DIFFERENTIAL
        self.predictionMode = PredictionMode.LL if in_doubt else PredictionMode.SLL
        alternative = super().adaptivePredict(input, decision, outerContext)
        # SLL prefers two scripts to one whether there is a second or not.
        if decision == _SCRIPTS and alternative in _FIRST_SCRIPT_ONLY and not _second_script_follows(input):
            return _FIRST_SCRIPT_ONLY[alternative]
        return alternative

    def _shortcut(self, tokens: Any, decision: int) -> int | None:
        """The alternative where the kinds of the tokens tell it, else None."""
        if decision == _FACTORS:  # 1: another factor, 2: the end
            kind = tokens.LA(1)
            if kind not in _FACTOR_STARTS:
                return 2
            return None if kind == PSParser.DIFFERENTIAL or kind in _BARS else 1
        if decision in _ELEMENTS:  # 1: two values, with a plus-minus sign; 2: a set; 3: an expression or a relation
            return 3 if PSParser.PLUS_MINUS not in self._kinds and tokens.LA(1) not in _SET_STARTS else None
        if decision == _FORMULA:  # 1: symbols, "=" or "in", and elements; 2: elements; 3: a relation of sets
            return 2 if self._kinds.isdisjoint(_SET_SIGNS) else None
        return None

    @functools.cached_property
    def _kinds(self) -> frozenset[int]:
        """The kinds of all tokens of the text."""
        tokens = self.parser.getTokenStream()
        tokens.fill()
        return frozenset(token.type for token in tokens.tokens)


def _second_script_follows(tokens: Any) -> bool:
    """Whether a sign of a script stands after the script that comes next: a sign, and one token or a group in braces."""
    ahead, depth = 2, 0
    while True:
        kind = tokens.LA(ahead)
        depth += (kind == PSParser.L_BRACE) - (kind == PSParser.R_BRACE)
        ahead += 1
        if depth <= 0 or kind == Token.EOF:
            return tokens.LA(ahead) in _SCRIPT_SIGNS
