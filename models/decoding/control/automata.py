"""Constraints as automata: regular expressions over bytes, lifted to tokens, and tries of token sequences.

A token automaton is a table of what each token does in each state; a text is followed on the device by looking up
`next[state, token]`, and a state's row says which tokens may come. All of it is made on the host, once.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from models.decoding.control import regex

DEAD = -1
MOST_STATES = 20_000


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A deterministic automaton over bytes: next `[S, 256]`, DEAD where nothing matches any more; accepts `[S]`.

    State 0 is the start; every state can still accept.
    """

    next: np.ndarray
    accepts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A deterministic automaton over tokens: next `[S, V]`, DEAD where a token is forbidden; distance `[S]`.

    State 0 is the start. The last state is behind the end token, which is allowed where the text may end. distance: how
    many tokens, the end included, are at least missing; every state has some.
    """

    next: np.ndarray
    distance: np.ndarray


def compile_regex(pattern: str) -> Bytes:
    """The smallest automaton of the texts that match the whole pattern, in UTF-8.

    Errors: ValueError where the pattern is not read (`regex.parse`), matches nothing, or needs more than 20,000 states.
    """
    nodes = _Nodes()
    start, end = nodes.add(), nodes.add()
    nodes.build(regex.parse(pattern), start, end)
    made = _determined(nodes, start, end, pattern)
    live = _reaching(made.next, made.accepts)
    if not live[0]:
        raise ValueError(f"no text matches the pattern {pattern!r}; an example that works: [a-z]+")
    return _smallest(_kept(made, live))


def lift(automaton: Bytes, vocabulary: Sequence[bytes | None], eos: int) -> Tokens:
    """Which tokens may come in which state: a token's bytes are followed one by one.

    Args:
      automaton: over bytes.
      vocabulary: the bytes of each token id; None or b"" where a token stands for no text, which is forbidden.
      eos: the id that ends a text, allowed where the text matches.

    Errors: ValueError where no token can begin a text that can be ended.
    """
    S, V = len(automaton.next), len(vocabulary)
    table = np.full((S + 1, V), DEAD, np.int32)
    following = np.concatenate([automaton.next, np.full((1, 256), DEAD, np.int32)])  # Row DEAD is dead.
    for token, text in enumerate(vocabulary):
        if text and token != eos:
            state = np.arange(S)
            for byte in text:
                state = following[state, byte]
            table[:S, token] = state
    table[:S, eos] = np.where(automaton.accepts, S, DEAD)
    return trimmed(table)


def trie(texts: Iterable[Sequence[int]], V: int, eos: int) -> Tokens:
    """Exactly these token sequences, each followed by `eos`.

    Errors: ValueError where there is none, or an id is no token.
    """
    children: list[dict[int, int]] = [{}]
    ends = set()
    for text in texts:
        state = 0
        for token in text:
            if not 0 <= token < V or token == eos:
                raise ValueError(f"a text of the trie has the id {token}; ids of text are 0 to {V - 1} without {eos}.")
            if token not in children[state]:
                children.append({})
                children[state][token] = len(children) - 1
            state = children[state][token]
        ends.add(state)
    table = np.full((len(children) + 1, V), DEAD, np.int32)
    for state, row in enumerate(children):
        for token, target in row.items():
            table[state, token] = target
    table[sorted(ends), eos] = len(children)
    return trimmed(table)


def trimmed(table: np.ndarray) -> Tokens:
    """A table `[S, V]` without the ways from which the last state, the end, cannot be reached.

    Errors: ValueError where it cannot be reached from state 0.
    """
    S = len(table)
    distance = np.full(S, np.iinfo(np.int32).max, np.int64)
    distance[-1] = 0
    for _ in range(S):
        nearest = np.where(table >= 0, distance[table], np.iinfo(np.int32).max).min(axis=1) + 1
        better = np.minimum(distance, nearest)
        if (better == distance).all():
            break
        distance = better
    live = distance < np.iinfo(np.int32).max
    if not live[0]:
        raise ValueError("no sequence of tokens fulfils the constraint; allow one, or use a tokenizer with its bytes.")
    seen = _reachable(table, live)
    renamed = np.full(S + 1, DEAD, np.int32)
    renamed[:-1][seen] = np.arange(seen.sum())
    kept = renamed[np.where(table >= 0, table, S)][seen]
    return Tokens(kept, distance[seen].astype(np.int32))


def allowed(automaton: Tokens, state: int, left: int | None = None) -> np.ndarray:
    """`[V]` bool: tokens that may come, and, if `left` tokens can still be written, with an end within reach."""
    target = automaton.next[state]
    return (target >= 0) & (True if left is None else automaton.distance[target] <= left - 1)


def matches(automaton: Tokens, text: Iterable[int]) -> bool:
    """Whether the token sequence ends in the last state: it fulfils the constraint and says so by its end token."""
    state = 0
    for token in text:
        state = automaton.next[state, token]
        if state == DEAD:
            return False
    return bool(state == len(automaton.next) - 1)


class _Nodes:
    """A nondeterministic automaton: per node the empty ways and the ways by a range of bytes."""

    def __init__(self) -> None:
        self.empty: list[list[int]] = []
        self.by_byte: list[list[tuple[int, int, int]]] = []

    def add(self) -> int:
        self.empty.append([])
        self.by_byte.append([])
        return len(self.empty) - 1

    def build(self, tree: object, start: int, end: int) -> None:
        """Ways from start to end that spell the tree."""
        if isinstance(tree, regex.Chars):
            for sequence in regex.utf8(tree.ranges):
                at = start
                for i, (low, high) in enumerate(sequence):
                    target = end if i == len(sequence) - 1 else self.add()
                    self.by_byte[at].append((low, high, target))
                    at = target
        elif isinstance(tree, regex.Sequence):
            for i, part in enumerate(tree.parts):
                target = end if i == len(tree.parts) - 1 else self.add()
                self.build(part, start, target)
                start = target
            if not tree.parts:
                self.empty[start].append(end)
        elif isinstance(tree, regex.Either):
            for part in tree.parts:
                self.build(part, start, end)
        else:
            self.repeat(tree, start, end)

    def repeat(self, tree: regex.Repeat, start: int, end: int) -> None:
        """Copies of the part; one that comes back to itself where there is no end."""
        if len(self.empty) > 10 * MOST_STATES:
            raise ValueError(
                f"a pattern repeats {tree.least} to {tree.most} times inside repetitions; use smaller counts."
            )
        at = start
        for i in range(tree.least if tree.most < 0 else tree.most):
            if i >= tree.least:
                self.empty[at].append(end)
            target = self.add()
            self.build(tree.part, at, target)
            at = target
        if tree.most < 0:
            again = self.add()
            self.empty[at].append(again)
            back = self.add()
            self.build(tree.part, again, back)
            self.empty[back].append(again)
            at = again
        self.empty[at].append(end)


def _determined(nodes: _Nodes, start: int, end: int, pattern: str) -> Bytes:
    """The subset construction."""

    def closure(states: Iterable[int]) -> frozenset[int]:
        found, todo = set(states), list(states)
        while todo:
            for target in nodes.empty[todo.pop()]:
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return frozenset(found)

    first = closure([start])
    index, order, rows = {first: 0}, [first], []
    closures: dict[frozenset[int], frozenset[int]] = {}
    for states in order:
        ways = [way for state in states for way in nodes.by_byte[state]]
        edges = sorted({0, 256, *(low for low, _, _ in ways), *(high + 1 for _, high, _ in ways)})
        row = np.full(256, DEAD, np.int32)
        for low, beyond in zip(edges, edges[1:], strict=False):
            raw = frozenset(target for a, b, target in ways if a <= low <= b)
            if raw:
                if raw not in closures:
                    closures[raw] = closure(raw)
                targets = closures[raw]
                if targets not in index:
                    index[targets] = len(order)
                    order.append(targets)
                row[low:beyond] = index[targets]
        rows.append(row)
        if len(order) > MOST_STATES:
            raise ValueError(f"the pattern {pattern[:80]!r} needs more than {MOST_STATES} states; use smaller counts.")
    return Bytes(np.stack(rows), np.array([end in states for states in order]))


def _reaching(table: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """States from which a state of the goal `[S]` can be reached: `[S]` bool."""
    live = goal.copy()
    while True:
        more = live | np.where(table >= 0, live[table], False).any(axis=1)
        if (more == live).all():
            return live
        live = more


def _reachable(table: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Live states to which state 0 leads by live states: `[S]` bool; the last is always kept."""
    seen = np.zeros(len(table), bool)
    todo = [0]
    while todo:
        state = todo.pop()
        if not seen[state]:
            seen[state] = True
            targets = np.unique(table[state])
            todo += [target for target in targets[targets >= 0] if live[target] and not seen[target]]
    return seen


def _kept(automaton: Bytes, live: np.ndarray) -> Bytes:
    """The automaton without the other states."""
    renamed = np.full(len(live) + 1, DEAD, np.int32)
    renamed[:-1][live] = np.arange(live.sum())
    table = np.where(automaton.next >= 0, automaton.next, len(live))
    return Bytes(renamed[table][live], automaton.accepts[live])


def _smallest(automaton: Bytes) -> Bytes:
    """States that no text tells apart become one (Moore's refinement)."""
    kind = np.unique(automaton.accepts, return_inverse=True)[1].reshape(-1)
    while True:
        known = np.concatenate([kind, [-1]])
        sign = np.concatenate([kind[:, None], known[automaton.next]], axis=1)
        finer = np.unique(sign, axis=0, return_inverse=True)[1].reshape(-1)
        if finer.max() == kind.max():
            break
        kind = finer
    first = np.array([np.flatnonzero(kind == one)[0] for one in range(kind.max() + 1)])
    order = np.argsort(first)  # State 0 stays the first.
    rank = np.empty(len(order) + 1, np.int32)
    rank[order], rank[-1] = np.arange(len(order)), DEAD
    known = np.concatenate([kind, [len(order)]])
    return Bytes(rank[known[automaton.next]][first[order]], automaton.accepts[first[order]])
