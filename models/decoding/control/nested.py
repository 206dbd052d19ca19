"""JSON of any depth, which is not regular: a stack of open brackets, followed byte by byte on the host.

Written are values without blanks, but for one behind colons and commas. A state is (what is being read, open brackets).
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

State = tuple[str, str]
"""(mode, brackets that are open, the last one innermost)."""
START: State = ("value", "")
WORDS = {ord("t"): "rue", ord("f"): "alse", ord("n"): "ull"}
DIGITS = frozenset(b"0123456789")
HEX = frozenset(b"0123456789abcdefABCDEF")
# What may follow in a number, by what was read: digits, and characters with the mode that they lead to.
NUMBERS: dict[str, tuple[str, Mapping[int, str]]] = {
    "minus": ("", {ord("0"): "zero"} | {digit: "int" for digit in b"123456789"}),
    "zero": ("", {ord("."): "dot", ord("e"): "e", ord("E"): "e"}),
    "int": ("int", {ord("."): "dot", ord("e"): "e", ord("E"): "e"}),
    "dot": ("fraction", {}),
    "fraction": ("fraction", {ord("e"): "e", ord("E"): "e"}),
    "e": ("exponent", {ord("+"): "sign", ord("-"): "sign"}),
    "sign": ("exponent", {}),
    "exponent": ("exponent", {}),
}
WHOLE = ("zero", "int", "fraction", "exponent")
LEADS = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}  # Of the second byte.


def step(state: State, byte: int) -> State | None:
    """The state behind one more byte; None where no JSON begins so."""
    mode, open_ = state
    kind, _, rest = mode.partition(" ")
    if kind in ("text", "key"):
        return _in_text(kind, rest, open_, byte)
    if kind == "word":
        return ((f"word {rest[1:]}" if rest[1:] else "after", open_)) if byte == ord(rest[0]) else None
    if kind in NUMBERS:
        digits, others = NUMBERS[kind]
        if byte in others:
            return others[byte], open_
        if digits and byte in DIGITS:
            return digits, open_
        return step(("after", open_), byte) if kind in WHOLE else None
    if kind == "colon":
        return ("value blank", open_) if byte == ord(":") else None
    if byte == ord(" "):
        return (kind, open_) if rest == "blank" else None
    return _between(kind, open_, byte)


def _between(kind: str, open_: str, byte: int) -> State | None:
    """Outside of texts, words and numbers."""
    if kind == "after":
        if byte == ord(",") and open_:
            return ("name blank" if open_[-1] == "{" else "value blank"), open_
        closes = open_ and byte == ord("}" if open_[-1] == "{" else "]")
        return ("after", open_[:-1]) if closes else None
    if kind in ("name", "first") and byte == ord('"') and open_ and open_[-1] == "{":
        return "key", open_
    if kind == "first" and byte == ord("}" if open_[-1] == "{" else "]"):
        return "after", open_[:-1]
    if kind == "name" or (kind == "first" and open_[-1] == "{"):
        return None
    if byte in b"{[":
        return "first", open_ + chr(byte)
    if byte == ord('"'):
        return "text", open_
    if byte in WORDS:
        return f"word {WORDS[byte]}", open_
    if byte == ord("-"):
        return "minus", open_
    return step(("minus", open_), byte) if byte in DIGITS else None


def _in_text(kind: str, rest: str, open_: str, byte: int) -> State | None:
    """Inside of a text or of the name of a property; rest: what a character that is begun still lacks."""
    if rest == "escape":
        if byte in b'"\\/bfnrt':
            return kind, open_
        return (f"{kind} u4", open_) if byte == ord("u") else None
    if rest.startswith("u"):
        left = int(rest[1]) - 1
        return ((f"{kind} u{left}" if left else kind), open_) if byte in HEX else None
    if rest:
        many, low, high = map(int, rest.split(","))
        if not low <= byte <= high:
            return None
        return (f"{kind} {many - 1},128,191" if many > 1 else kind), open_
    if byte == ord('"'):
        return ("after" if kind == "text" else "colon"), open_
    if byte == ord("\\"):
        return f"{kind} escape", open_
    if byte < 0x80:
        return (kind, open_) if byte >= 0x20 else None
    many = 1 if 0xC2 <= byte < 0xE0 else 2 if 0xE0 <= byte < 0xF0 else 3 if 0xF0 <= byte < 0xF5 else 0
    low, high = LEADS.get(byte, (0x80, 0xBF))
    return (f"{kind} {many},{low},{high}", open_) if many else None


def follow(state: State | None, text: Iterable[int]) -> State | None:
    """The state behind these bytes."""
    for byte in text:
        if state is None:
            return None
        state = step(state, byte)
    return state


def complete(state: State) -> bool:
    """Whether the text is a JSON value as it stands."""
    return not state[1] and state[0] in ("after", *WHOLE)


def missing(state: State) -> int:
    """The fewest bytes that make it a JSON value."""
    mode, open_ = state
    kind, _, rest = mode.partition(" ")
    if kind in ("text", "key"):
        begun = 1 if rest == "escape" else int(rest.lstrip("u")[0]) if rest else 0
        return begun + (1 if kind == "text" else 3) + len(open_)
    own = {"value": 1, "name": 4, "colon": 2, "minus": 1, "dot": 1, "e": 1, "sign": 1, "word": len(rest)}
    return own.get(kind, 0) + len(open_)


Trie = dict
"""Byte -> Trie; key -1 holds the tokens that end there."""


def trie(vocabulary: Sequence[bytes | None]) -> Trie:
    """Tokens by their bytes.

    Errors: ValueError where a byte that JSON needs is no token by itself.
    """
    root: Trie = {}
    for token, text in enumerate(vocabulary):
        if text:
            node = root
            for byte in text:
                node = node.setdefault(byte, {})
            node.setdefault(-1, []).append(token)
    for byte in b'{}[]":,0':
        if -1 not in root.get(byte, {}):
            raise ValueError(f"generate.control='json' needs tokens of one byte, and {chr(byte)!r} is none; train one.")
    return root


def allowed(root: Trie, state: State, left: int, V: int) -> np.ndarray:
    """`[V]` bool: the tokens behind which a value can be ended by `left - 1` more tokens, its end token included."""
    mask = np.zeros(V, bool)
    todo = [(root, state)]
    while todo:
        node, here = todo.pop()
        if -1 in node and missing(here) + 1 <= left - 1:
            mask[node[-1]] = True
        for byte, below in node.items():
            if byte >= 0 and (after := step(here, byte)) is not None:
                todo.append((below, after))
    return mask


@functools.lru_cache(maxsize=8)
def known(vocabulary: tuple[Any, ...]) -> Trie:
    """`trie`, those of the last tokenizers kept."""
    return trie(vocabulary)
