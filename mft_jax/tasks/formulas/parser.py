"""Makes math-verify's LaTeX parser faster, without changing what it returns.

Where a grammar rule has several alternatives, the parser of ANTLR predicts which of them matches the text. It has two
prediction modes. LL uses the full context; this takes most of the time of grading. SLL ignores the context and is ten
times as fast. If SLL parses a text without an error, then LL gives the same result. So each text is first parsed with
SLL, and again with LL if SLL reports an error.

`FastPredictions` also predicts some alternatives from single tokens, where SLL is slow or often wrong. ANTLR takes the
first alternative that matches, and these predictions skip one only if it cannot match. So a wrong prediction can only
lead to an error, after which the text is parsed with LL.
"""

import functools
from typing import Any

import sympy
from antlr4 import Token
from antlr4.atn.ATNState import BasicBlockStartState, PlusLoopbackState
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.antlr_parser import PSParser

_Latex2Sympy: Any = latex2sympy2._Latex2Sympy


def install() -> None:
    """Replaces the parser of math-verify in this process."""
    create_ll_parser, parse_number = _Latex2Sympy.create_parser, _Latex2Sympy.parse_number

    def create_parser(converter: Any, text: str) -> Any:
        parser = create_ll_parser(converter, text)
        ll = parser._interp
        parser._interp = FastPredictions(parser, ll.atn, ll.decisionToDFA, ll.sharedContextCache)
        parse_with_sll = parser.math

        def math() -> Any:
            try:
                return parse_with_sll()
            except Exception:  # math-verify's error listener raises it
                return create_ll_parser(converter, text).math()

        parser.math = math
        return parser

    @functools.lru_cache(maxsize=4096)
    def number(text: str) -> Any:
        # math-verify passes the text to SymPy's parser of Python expressions, which takes half a millisecond.
        return sympy.Integer(int(text)) if text.isascii() and text.isdigit() else parse_number(None, text)

    _Latex2Sympy.create_parser = create_parser
    _Latex2Sympy.parse_number = lambda converter, text: number(text)


def _decision(rule: int, state_type: type) -> int:
    """The number of the decision of a grammar rule that starts at a state of this type; there must be only one."""
    (decision,) = (
        number
        for number, state in enumerate(PSParser.atn.decisionToState)
        if state.ruleIndex == rule and type(state) is state_type
    )
    return decision


def _first_tokens(rule: int) -> frozenset[int]:
    """The tokens with which a grammar rule can begin."""
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
    PSParser.IN, PSParser.NOTIN, PSParser.ASSIGNMENT, PSParser.UNION, PSParser.INTERSECTION, PSParser.SUBSET,
    PSParser.SUPSET,
}  # fmt: skip
_BARS = {PSParser.BAR, PSParser.VERT, PSParser.NORM}  # each can begin a factor or end one
_SCRIPT_SIGNS = {PSParser.CARET, PSParser.UNDERSCORE}
# For each alternative with a subscript and a superscript, in either order, the alternative with only the first of them.
_FIRST_SCRIPT_ONLY = {1: 4, 2: 3}


class FastPredictions(ParserATNSimulator):
    """Predicts the alternatives for one parser, in SLL mode."""

    def adaptivePredict(self, input: Any, decision: int, outerContext: Any) -> int:
        """The number of the alternative of a decision that matches the next tokens, from 1."""
        shortcut = self._shortcut(input, decision)
        if shortcut is not None:
            return shortcut
        # "dx" is the end of an integral or one of its factors, depending on the context.
        needs_context = decision == _FACTORS and input.LA(1) == PSParser.DIFFERENTIAL
        self.predictionMode = PredictionMode.LL if needs_context else PredictionMode.SLL
        alternative = super().adaptivePredict(input, decision, outerContext)
        # SLL predicts two scripts even if only one follows.
        if decision == _SCRIPTS and alternative in _FIRST_SCRIPT_ONLY and not _second_script_follows(input):
            return _FIRST_SCRIPT_ONLY[alternative]
        return alternative

    def _shortcut(self, tokens: Any, decision: int) -> int | None:
        """The alternative, from 1, if it can be predicted from the types of single tokens; otherwise None."""
        if decision == _FACTORS:  # 1: another factor; 2: no more factors
            token = tokens.LA(1)
            if token not in _FACTOR_STARTS:
                return 2
            return None if token == PSParser.DIFFERENTIAL or token in _BARS else 1
        if decision in _ELEMENTS:  # 1: an expression with a plus-minus sign; 2: a set; 3: any other element
            return 3 if PSParser.PLUS_MINUS not in self._types and tokens.LA(1) not in _SET_STARTS else None
        if decision == _FORMULA:  # 1: symbols, "=" or "in", elements; 2: elements; 3: a relation between sets
            return 2 if self._types.isdisjoint(_SET_SIGNS) else None
        return None

    @functools.cached_property
    def _types(self) -> frozenset[int]:
        """The types of all tokens of the text."""
        tokens = self.parser.getTokenStream()
        tokens.fill()
        return frozenset(token.type for token in tokens.tokens)


def _second_script_follows(tokens: Any) -> bool:
    """Whether "^" or "_" follows after the next script, which is "^" or "_" and then one token or a group in braces."""
    ahead, depth = 2, 0
    while True:
        token = tokens.LA(ahead)
        depth += (token == PSParser.L_BRACE) - (token == PSParser.R_BRACE)
        ahead += 1
        if depth <= 0 or token == Token.EOF:
            return tokens.LA(ahead) in _SCRIPT_SIGNS
