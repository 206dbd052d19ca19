"""Predicates of a text that is still being written, and the tokens that they forbid: LMQL's FINAL semantics.

(Beurer-Kellner et al. 2023, arXiv:2212.06094.) A value of an unfinished text is FIN if no continuation changes it, INC
or DEC if continuations only grow or shrink it, else VAR. A token is forbidden if the text with it makes the predicate
false for good (False and FIN); a text may stop early if it is true for good; it may end only if it is true.
"""

import ast
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FIN, VAR, INC, DEC = "fin", "var", "inc", "dec"
Valued = tuple[Any, str]
"""A value and its FINAL."""


class Expression:
    """Base of all: `__call__(text, done)` -> (value, FINAL) of a text; done: nothing will follow."""

    def __call__(self, text: str, done: bool) -> Valued:
        """(value, FINAL): what the expression is now, and how what follows may change it."""
        raise NotImplementedError

    def __and__(self, other: "Expression") -> "Expression":
        return And((self, other))

    def __or__(self, other: "Expression") -> "Expression":
        return Or((self, other))

    def __invert__(self) -> "Expression":
        return Not(self)


@dataclasses.dataclass(frozen=True)
class Count(Expression):
    """len of the text cut by `into` (characters, words, sentences, ...), which only grows: INC, FIN when done."""

    into: Callable[[str], Sequence] = list

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        return len(self.into(text)), FIN if done else INC


@dataclasses.dataclass(frozen=True)
class Constant(Expression):
    """A number that stays: FIN."""

    value: float

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        return self.value, FIN


@dataclasses.dataclass(frozen=True)
class Less(Expression):
    """left < right; `less_final` says when it stays."""

    left: Expression
    right: Expression

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        (a, fa), (b, fb) = self.left(text, done), self.right(text, done)
        return a < b, less_final(a < b, fa, fb)


def less_final(value: bool, left: str, right: str) -> str:
    """FINAL of left < right from those of its sides.

    True stays if the left is DEC or FIN and the right INC or FIN; False if the left is INC or FIN and the right DEC or
    FIN; else VAR.
    """
    shrinks, grows = (left, right) if value else (right, left)
    return FIN if shrinks in (DEC, FIN) and grows in (INC, FIN) else VAR


@dataclasses.dataclass(frozen=True)
class Contains(Expression):
    """Whether the text has the piece in it: True is FIN."""

    piece: str

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        value = self.piece in text
        return value, FIN if value or done else VAR


@dataclasses.dataclass(frozen=True)
class OneOf(Expression):
    """Whether the text is one of the options: False is FIN once no option begins with it."""

    options: tuple[str, ...]

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        value = text in self.options
        longer = any(option != text and option.startswith(text) for option in self.options)
        if done or (not value and not longer):
            return value, FIN
        return value, VAR


@dataclasses.dataclass(frozen=True)
class Characters(Expression):
    """Whether all characters fulfil `each`, and there are some: False is FIN once one does not."""

    each: Callable[[str], bool] = str.isdigit

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        good = all(map(self.each, text))
        return good and bool(text), FIN if done or not good else VAR


@dataclasses.dataclass(frozen=True)
class Not(Expression):
    """The opposite, with the same FINAL."""

    of: Expression

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        value, final = self.of(text, done)
        return not value, final


@dataclasses.dataclass(frozen=True)
class And(Expression):
    """All of them: one that is False and FIN makes it so; all FIN make it FIN."""

    of: tuple[Expression, ...]

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        parts = [each(text, done) for each in self.of]
        if any(not value and final == FIN for value, final in parts):
            return False, FIN
        return all(value for value, _ in parts), FIN if all(final == FIN for _, final in parts) else VAR


@dataclasses.dataclass(frozen=True)
class Or(Expression):
    """One of them: one that is True and FIN makes it so; all FIN make it FIN."""

    of: tuple[Expression, ...]

    def __call__(self, text: str, done: bool) -> Valued:
        """See `Expression`."""
        value, final = And(tuple(Not(each) for each in self.of))(text, done)
        return not value, final


def allowed(expression: Expression, text: str, tokens: Sequence[str], eos: int) -> np.ndarray:
    """`[V]` bool: token t is forbidden if (text + t) is False and FIN; `eos` is allowed if the text, done, is True."""
    verdicts = (expression(text + token, False) for token in tokens)
    mask = np.array([value or final != FIN for value, final in verdicts])
    mask[eos] = bool(expression(text, True)[0])
    return mask


def may_stop(expression: Expression, text: str) -> bool:
    """Whether the text can stop early: the predicate is True whatever follows."""
    value, final = expression(text, False)
    return bool(value) and final == FIN


EXAMPLE = "len(words(text)) < 20 and 'x' not in text"
LENGTHS: dict[str, Callable[[str], Sequence]] = {
    "characters": list,
    "words": str.split,
    "sentences": lambda text: [one for one in re.split(r"[.!?]+", text) if one.strip()],
    "lines": str.splitlines,
}
CHARACTERS: dict[str, Callable[[str], bool]] = {"digits": str.isdigit, "letters": str.isalpha}


def parse(source: str) -> Expression:
    """The predicate that a text says, in a part of Python's syntax; `text` is the answer.

    `and`, `or`, `not`; `"x" in text`, `"x" not in text`; `text in ["yes", "no"]`, `text == "yes"`; `digits(text)`,
    `letters(text)`: it has nothing else; and numbers, `len(text)` and `len(words(text))` (or characters, sentences,
    lines) on both sides of <, <=, >, >=, ==, !=.

    Errors: ValueError in one sentence, with an example.
    """
    try:
        return _truth(ast.parse(source.strip(), mode="eval").body)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"the predicate {source!r} cannot be read; an example: {EXAMPLE}.") from error


def _unknown(node: ast.AST) -> ValueError:
    return ValueError(f"the predicate has {ast.unparse(node)!r}, which is not known; an example: {EXAMPLE}.")


def _truth(node: ast.AST) -> Expression:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = tuple(map(_truth, values))
            return And(parts) if isinstance(op, ast.And) else Or(parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Not(_truth(operand))
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id="text")], keywords=[]) if name in CHARACTERS:
            return Characters(CHARACTERS[name])
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = (left, *others)
            pairs = [_compared(op, a, b) for op, a, b in zip(ops, sides[:-1], sides[1:], strict=True)]
            return pairs[0] if len(pairs) == 1 else And(tuple(pairs))
    raise _unknown(node)


def _compared(op: ast.cmpop, left: ast.AST, right: ast.AST) -> Expression:
    match left, op, right:
        case ast.Constant(value=str(piece)), ast.In() | ast.NotIn(), ast.Name(id="text"):
            made: Expression = Contains(piece)
        case ast.Name(id="text"), ast.In() | ast.NotIn(), ast.List(elts=options) | ast.Tuple(elts=options):
            if not all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in options):
                raise _unknown(right)
            made = OneOf(tuple(one.value for one in options if isinstance(one, ast.Constant)))
        case ast.Name(id="text"), ast.Eq() | ast.NotEq(), ast.Constant(value=str(option)):
            made = OneOf((option,))
        case _:
            return _numbers(op, _number(left), _number(right))
    return Not(made) if isinstance(op, ast.NotIn | ast.NotEq) else made


def _numbers(op: ast.cmpop, a: Expression, b: Expression) -> Expression:
    match op:
        case ast.Lt():
            return Less(a, b)
        case ast.Gt():
            return Less(b, a)
        case ast.LtE():
            return Not(Less(b, a))
        case ast.GtE():
            return Not(Less(a, b))
        case ast.Eq():
            return And((Not(Less(a, b)), Not(Less(b, a))))
        case ast.NotEq():
            return Or((Less(a, b), Less(b, a)))
    raise ValueError(f"the predicate compares numbers by {type(op).__name__}; an example: {EXAMPLE}.")


def _number(node: ast.AST) -> Expression:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Constant(value)
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id="text")], keywords=[]):
            return Count(list)
        case ast.Call(
            func=ast.Name(id="len"),
            args=[ast.Call(func=ast.Name(id=name), args=[ast.Name(id="text")], keywords=[])],
            keywords=[],
        ) if name in LENGTHS:
            return Count(LENGTHS[name])
    raise _unknown(node)
