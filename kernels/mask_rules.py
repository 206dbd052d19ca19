"""Masks that are arithmetic on indices, and the strings that name them.

With T queries and S keys the queries are the LAST T positions of the S (bottom-right alignment): query i stands at
position i + S - T. Strings: `parse("causal & (window(1024) | sinks(4))")`.
"""

import ast
import dataclasses
import difflib
import operator
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.mask_algebra import BIG, Full, Mask, array_module, index_ranges, shape_of, spread


@dataclasses.dataclass(frozen=True, eq=False)
class Causal(Mask):
    """A query sees keys up to its own position plus `offset` (tokens; -1 excludes itself)."""

    offset: int = 0

    def __post_init__(self):
        _integer(self, "offset", None)

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return k_index <= q_index + (S - T + self.offset)

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        shift = S - T + self.offset
        return k_low <= q_high + shift, k_high <= q_low + shift

    def __str__(self) -> str:
        return f"causal({self.offset})" if self.offset else "causal"


@dataclasses.dataclass(frozen=True, eq=False)
class Window(Mask):
    """A query at p sees keys p - left .. p + right, both ends included; `right` is `left` when not given.

    A causal window of w tokens that counts the query itself is `Window(w - 1, 0)`.
    """

    left: int
    right: int | None = None

    def __post_init__(self):
        _integer(self, "left", 0)
        if self.right is None:
            object.__setattr__(self, "right", self.left)
        _integer(self, "right", 0)

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return (k_index >= q_index + (S - T - self.left)) & (k_index <= q_index + (S - T + self.right))

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        nearest, farthest = k_low - q_high - (S - T), k_high - q_low - (S - T)
        return (nearest <= self.right) & (farthest >= -self.left), (nearest >= -self.left) & (farthest <= self.right)

    def __str__(self) -> str:
        return f"window({self.left}, {self.right})"


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Keys with index < n are seen by every query; n is an int, or int [B]: one length per row of the batch."""

    n: Any

    def __post_init__(self):
        if isinstance(self.n, int | np.integer):
            _integer(self, "n", 0)

    def counts(self):
        return (0, 0, 0) if isinstance(self.n, int) else (1, 0, 0)

    def operands(self, T, S):
        if isinstance(self.n, int):
            return (), (), ()
        return (jnp.broadcast_to(jnp.asarray(self.n, jnp.int32).reshape(-1, 1), (jnp.size(self.n), T)),), (), ()

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return spread(k_index, q_index) < (self.n if isinstance(self.n, int) else q_vectors[0])

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        some = spread(k_low, q_low) < self.n
        return some, spread(k_high, q_low) < self.n

    def bounds(self, T, S, block_q, block_k):
        if isinstance(self.n, int):
            return super().bounds(T, S, block_q, block_k)
        limit = jnp.asarray(self.n, jnp.int32).reshape(-1, 1, 1, 1)
        low, high = (jnp.asarray(r, jnp.int32) for r in index_ranges(S, block_k))
        rows = jnp.zeros((-(-T // block_q), 1), jnp.int32)
        return low + rows < limit, high + rows < limit

    def __str__(self) -> str:
        return f"prefix({self.n if isinstance(self.n, int) else shape_of(self.n)})"


@dataclasses.dataclass(frozen=True, eq=False)
class Sinks(Prefix):
    """The first n keys are seen by every query (attention sinks, to be joined to a window by `|`)."""

    def __post_init__(self):
        _integer(self, "n", 0)

    def __str__(self) -> str:
        return f"sinks({self.n})"


@dataclasses.dataclass(frozen=True, eq=False)
class BlockCausal(Mask):
    """Positions in blocks of `size`: a query sees all of its own block and all blocks before it."""

    size: int

    def __post_init__(self):
        _integer(self, "size", 1)

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return _block(k_index, self.size) <= _block(q_index + (S - T), self.size)

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        q_low, q_high = _block(q_low + (S - T), self.size), _block(q_high + (S - T), self.size)
        k_low, k_high = _block(k_low, self.size), _block(k_high, self.size)
        return k_low <= q_high, k_high <= q_low

    def __str__(self) -> str:
        return f"blockcausal({self.size})"


@dataclasses.dataclass(frozen=True, eq=False)
class BlockDiffusion(Mask):
    """The training mask of block diffusion over [noisy ; clean], T = S = 2 length, blocks of `size`.

    A noisy query sees the noisy keys of its own block and the clean keys of earlier blocks; a clean query sees the
    clean keys of its own and earlier blocks. length^2 + length * size of 4 length^2 entries are seen.
    Source: Arriola et al. 2025, "Block Diffusion", section on vectorised training.
    """

    length: int
    size: int

    def __post_init__(self):
        _integer(self, "length", 1)
        _integer(self, "size", 1)

    def check(self, T, S):
        if [2 * self.length] * 2 != [T, S]:
            raise ValueError(
                f"BlockDiffusion(length={self.length}) is for T = S = {2 * self.length}, not T={T}, S={S}; "
                f"use BlockDiffusion(length={S // 2}, size={self.size})."
            )

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        # Per side first, so that only two comparisons are done for every pair.
        where, length = array_module(q_index, k_index).where, self.length
        q_noisy, k_noisy = q_index < length, k_index < length
        q_block = _block(where(q_noisy, q_index, q_index - length), self.size)
        k_block = _block(where(k_noisy, k_index, k_index - length), self.size)
        clean = where(k_noisy, BIG, k_block) < where(q_noisy, q_block, q_block + 1)
        return clean | (where(k_noisy, k_block, -2) == where(q_noisy, q_block, -3))

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        some, every = False, True
        for q_clean in (0, 1):  # a tile may straddle the halves: each quarter is exact, so is their union
            q0, q1, q_here = _half(q_low, q_high, q_clean, self.length)
            q0, q1 = _block(q0, self.size), _block(q1, self.size)
            for k_clean in (0, 1):
                k0, k1, k_here = _half(k_low, k_high, k_clean, self.length)
                k0, k1 = _block(k0, self.size), _block(k1, self.size)
                here = q_here & k_here
                if k_clean:
                    hit, whole = k0 < q1 + q_clean, k1 < q0 + q_clean
                elif q_clean:
                    hit, whole = here & ~here, here & ~here
                else:
                    hit, whole = (k0 <= q1) & (q0 <= k1), (k0 == q1) & (q0 == k1)
                some, every = some | (here & hit), every & (~here | whole)
        return some, every

    def __str__(self) -> str:
        return f"blockdiffusion({self.length}, {self.size})"


NAMES = {
    "full": Full,
    "causal": Causal,
    "window": Window,
    "prefix": Prefix,
    "sinks": Sinks,
    "blockcausal": BlockCausal,
    "blockdiffusion": BlockDiffusion,
}
NEED_ARRAYS = {
    "segments": "Segments",
    "positions": "Positions",
    "anyorder": "AnyOrder",
    "tree": "Tree",
    "dense": "Dense",
}
_TOKEN = re.compile(r"\s*(?:(\w+)\s*(\([^()]*\))?|([&|~()]))")


def parse(text: str) -> Mask:
    """Reads a mask without arrays, e.g. "causal & (window(1024) | sinks(4))", "~causal", "blockdiffusion(64, size=8)".

    Names are those of `NAMES` (any case, underscores ignored) with integer arguments; `~` binds before `&` before `|`.
    `parse(str(mask)) == mask`. Raises ValueError with the nearest valid name.
    """
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(
                f"mask {text!r} cannot be read at {text[at:].strip()!r}; write e.g. 'causal & window(1024)'."
            )
        tokens.append(match)
        at = match.end()
    mask, rest = _parse_or(tokens, text)
    if rest:
        raise ValueError(f"mask {text!r} goes on after its end at {rest[0][0].strip()!r}; join masks by & or |.")
    return mask


def _parse_or(tokens: list[re.Match], text: str) -> tuple[Mask, list[re.Match]]:
    mask, tokens = _parse_and(tokens, text)
    while tokens and tokens[0][3] == "|":
        other, tokens = _parse_and(tokens[1:], text)
        mask = mask | other
    return mask, tokens


def _parse_and(tokens: list[re.Match], text: str) -> tuple[Mask, list[re.Match]]:
    mask, tokens = _parse_one(tokens, text)
    while tokens and tokens[0][3] == "&":
        other, tokens = _parse_one(tokens[1:], text)
        mask = mask & other
    return mask, tokens


def _parse_one(tokens: list[re.Match], text: str) -> tuple[Mask, list[re.Match]]:
    if not tokens or tokens[0][3] in ("&", "|", ")"):
        raise ValueError(
            f"mask {text!r} lacks a mask before its end or an operator; write e.g. 'causal & window(1024)'."
        )
    token, rest = tokens[0], tokens[1:]
    if token[3] == "~":
        mask, rest = _parse_one(rest, text)
        return ~mask, rest
    if token[3] == "(":
        mask, rest = _parse_or(rest, text)
        if not rest or rest[0][3] != ")":
            raise ValueError(
                f"mask {text!r} lacks a closing parenthesis; write e.g. 'causal & (window(8) | sinks(2))'."
            )
        return mask, rest[1:]
    return _named(token[1], token[2] or "()", text), rest


def _named(name: str, arguments: str, text: str) -> Mask:
    key = name.lower().replace("_", "")
    if key in NEED_ARRAYS:
        raise ValueError(f"mask {name!r} in {text!r} needs arrays; build it in code as masks.{NEED_ARRAYS[key]}(...).")
    if key not in NAMES:
        near = difflib.get_close_matches(key, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(NAMES)}."
        raise ValueError(f"mask {name!r} in {text!r} is not known; {hint}")
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        values = [ast.literal_eval(a) for a in call.args]
        return NAMES[key](*values, **{k.arg: ast.literal_eval(k.value) for k in call.keywords})
    except (TypeError, SyntaxError, ValueError) as error:
        fields = ", ".join(f.name for f in dataclasses.fields(NAMES[key]))
        detail = f" ({error})" if str(error).endswith(".") else ""
        raise ValueError(f"mask {name + arguments!r} does not fit {key}({fields}) of integers{detail or '.'}") from None


def _integer(mask: Mask, name: str, least: int | None) -> None:
    value = getattr(mask, name)
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name}={value!r} of {type(mask).__name__} must be an integer, e.g. {max(least or 0, 1)}."
        ) from None
    if least is not None and value < least:
        raise ValueError(f"{name}={value} of {type(mask).__name__} must be at least {least}; use {max(least, 1)}.")
    object.__setattr__(mask, name, value)


def _block(index: Any, size: int) -> Any:
    """floor(index / size); whatever lies below -size gives -1, which is before every block as well."""
    if size & (size - 1) == 0:
        return index >> (size.bit_length() - 1)
    # Division of non-negative numbers only: it is the one that every backend has.
    xp = array_module(index)
    raised = xp.maximum(index, -size) + size
    return (raised // size if xp is np else lax.div(raised, jnp.asarray(size, raised.dtype))) - 1


def _half(low: Any, high: Any, clean: int, length: int) -> tuple[Any, Any, Any]:
    """Of a range of [noisy ; clean] the part in one half: first, last, and whether there is any."""
    xp = array_module(low, high)
    if clean:
        return xp.maximum(low, length) - length, high - length, high >= length
    return low, xp.minimum(high, length - 1), low < length
