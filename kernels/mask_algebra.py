"""The methods of every mask: combine, evaluate, classify tiles. Import masks from `kernels.masks`.

A mask is an immutable expression and a pytree: arrays are its leaves, integers and names its static structure. So one
without arrays is a constant of the compiled program, and one with arrays is an argument that does not recompile. Every
predicate reads integer vectors per query and per key (and, for `Dense` only, a tile), so the same few lines run on a
whole [T, S] square and on one tile inside a Pallas kernel.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

BIG = 2**31 - 1
EMPTY, PARTIAL, FULL = 0, 1, 2
# Above this many entries a static combination keeps the classification of interval logic, which is safe but not exact.
REFINE_LIMIT = 1 << 27

Arrays = tuple[Any, ...]


def array_module(*arrays: Any) -> Any:
    """numpy when nothing is a JAX array (classification at trace time must not be traced), else jax.numpy."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def spread(value: Any, like: Any) -> Any:
    """Broadcasts integers against `like` BEFORE they are compared: TPU vectors of booleans do not broadcast well."""
    return value + like * 0


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """A description of which query sees which key; combine with `&`, `|` and `~`."""

    # How many per-query vectors, per-key vectors and tiles `evaluate` reads for this node alone.
    arity: ClassVar[tuple[int, int, int]] = (0, 0, 0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, functools.partial(_unflatten, cls), _flatten)

    def __and__(self, other: "Mask") -> "Mask":
        return _combine(And, self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return _combine(Or, self, other)

    def __invert__(self) -> "Mask":
        return self.inner if isinstance(self, Not) else Not(self)

    def __eq__(self, other: object) -> bool:
        """Equal structure and, where there are arrays, the very same arrays."""
        if type(self) is not type(other):
            return False
        (mine, shape), (theirs, other_shape) = jax.tree.flatten(self), jax.tree.flatten(other)
        return shape == other_shape and all(a is b for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        leaves, shape = jax.tree.flatten(self)
        return hash((shape, tuple(map(id, leaves))))

    @property
    def is_static(self) -> bool:
        """Whether the mask is index arithmetic only: known when the program is traced."""
        return not jax.tree.leaves(self)

    def counts(self) -> tuple[int, int, int]:
        """How many per-query vectors, per-key vectors and tiles `operands` gives."""
        return self.arity

    def check(self, T: int, S: int) -> None:
        """Raises ValueError where the mask cannot be read at this T and S."""

    def operands(self, T: int, S: int) -> tuple[Arrays, Arrays, Arrays]:
        """The arrays that `evaluate` reads beside the indices.

        Returns int32 vectors per query, each [B|1, T]; int32 vectors per key, each [B|1, S]; int8 tiles, each
        [B|1, N|1, T, S] (of `Dense` only). All three are empty for a static mask.
        """
        self.check(T, S)
        return (), (), ()

    def evaluate(self, q_index: Any, k_index: Any, q_vectors: Any, k_vectors: Any, tiles: Any, T: int, S: int) -> Any:
        """Whether the query sees the key: bool, elementwise with broadcasting.

        q_index and q_vectors broadcast along keys (e.g. [bq, 1]), k_index and k_vectors along queries (e.g. [1, bk]),
        int32; tiles are [.., bq, bk]. T and S are the lengths of the whole problem: indices are global. Comparisons,
        and/or/not, select, integer addition and division by a static number only: it can run inside a Pallas kernel.
        """
        raise NotImplementedError

    def interval(self, q_low: Any, q_high: Any, k_low: Any, k_high: Any, T: int, S: int) -> tuple[Any, Any]:
        """Of index predicates: (some pair may see, every pair sees) over inclusive ranges of indices."""
        raise NotImplementedError

    def bounds(self, T: int, S: int, block_q: int, block_k: int) -> tuple[Any, Any]:
        """(some entry of the tile may be seen, every entry is seen): bool [nq, nk] or [B|1, N|1, nq, nk]."""
        q_low, q_high = index_ranges(T, block_q)
        k_low, k_high = index_ranges(S, block_k)
        return self.interval(q_low[:, None], q_high[:, None], k_low[None], k_high[None], T, S)

    def dense(self, T: int, S: int) -> Any:
        """The whole mask: bool [T, S] (numpy) when static, else [B|1, N|1, T, S]."""
        return self._square(T, S, np if self.is_static else jnp)

    def traced(self, T: int, S: int) -> jax.Array:
        """As `dense`, always a JAX array [B|1, N|1, T, S]: computed by the program instead of stored in it."""
        seen = self._square(T, S, jnp)
        return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)

    def _square(self, T: int, S: int, xp: Any) -> Any:
        q_vectors, k_vectors, tiles = self.operands(T, S)
        q_index, k_index = xp.arange(T, dtype=np.int32)[:, None], xp.arange(S, dtype=np.int32)[None]
        q_vectors = [v[:, None, :, None] for v in q_vectors]
        k_vectors = [v[:, None, None, :] for v in k_vectors]
        seen = self.evaluate(q_index, k_index, q_vectors, k_vectors, tiles, T, S)
        return xp.broadcast_to(seen, (*seen.shape[:-2], T, S))

    def tiles(self, T: int, S: int, block_q: int, block_k: int) -> Any:
        """Classifies tiles of block_q queries by block_k keys: int8, 0 empty, 1 partial, 2 full.

        Only real entries count: a last tile that hangs over the edge is full when all entries inside [T, S] are seen.
        Static masks give numpy [nq, nk], exact below `REFINE_LIMIT` partial entries. Masks with arrays give a JAX array
        [B|1, N|1, nq, nk] from the least and greatest value in each tile: exact for `Positions` under causal, `Prefix`,
        `AnyOrder`, `Dense`, and `Segments` numbered in order. For other masks it is safe: a tile called empty or full
        is so, but a tile called partial may be either.
        """
        self.check(T, S)
        if self.is_static:
            return _static_tiles(self, T, S, block_q, block_k)
        some, every = self.bounds(T, S, block_q, block_k)
        return some.astype(jnp.int8) + (some & every).astype(jnp.int8)


def _flatten(mask: Mask) -> tuple[list, tuple]:
    data, static = [], []
    for field in dataclasses.fields(mask):
        value = getattr(mask, field.name)
        is_data = not (value is None or isinstance(value, int | str))
        (data if is_data else static).append((field.name, value))
    return [value for _, value in data], (tuple(name for name, _ in data), tuple(static))


def _flatten_with_keys(mask: Mask) -> tuple[list, tuple]:
    children, aux = _flatten(mask)
    return [(jax.tree_util.GetAttrKey(n), c) for n, c in zip(aux[0], children, strict=True)], aux


def _unflatten(cls: type, aux: tuple, children: Any) -> Mask:
    # Around __init__: JAX rebuilds pytrees with placeholders that no check of values would pass.
    mask = object.__new__(cls)
    for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
        object.__setattr__(mask, name, value)
    return mask


@dataclasses.dataclass(frozen=True, eq=False)
class Full(Mask):
    """Every query sees every key."""

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return spread(k_index, q_index) == spread(k_index, q_index)

    def interval(self, q_low, q_high, k_low, k_high, T, S):
        yes = (q_low <= q_high) & (k_low <= k_high)
        return yes, yes

    def __str__(self) -> str:
        return "full"


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair(Mask):
    left: Mask
    right: Mask

    def counts(self):
        return tuple(a + b for a, b in zip(self.left.counts(), self.right.counts(), strict=True))

    def check(self, T, S):
        self.left.check(T, S)
        self.right.check(T, S)

    def operands(self, T, S):
        return tuple(a + b for a, b in zip(self.left.operands(T, S), self.right.operands(T, S), strict=True))

    def _sides(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        q, k, t = self.left.counts()
        yield self.left.evaluate(q_index, k_index, q_vectors[:q], k_vectors[:k], tiles[:t], T, S)
        yield self.right.evaluate(q_index, k_index, q_vectors[q:], k_vectors[k:], tiles[t:], T, S)


@dataclasses.dataclass(frozen=True, eq=False)
class And(_Pair):
    """Seen by both."""

    def evaluate(self, *args):
        left, right = self._sides(*args)
        return left & right

    def interval(self, *args):
        return _both(self.left.interval(*args), self.right.interval(*args))

    def bounds(self, *args):
        return _both(self.left.bounds(*args), self.right.bounds(*args))

    def __str__(self) -> str:
        return f"({self.left} & {self.right})"


@dataclasses.dataclass(frozen=True, eq=False)
class Or(_Pair):
    """Seen by either."""

    def evaluate(self, *args):
        left, right = self._sides(*args)
        return left | right

    def interval(self, *args):
        return _either(self.left.interval(*args), self.right.interval(*args))

    def bounds(self, *args):
        return _either(self.left.bounds(*args), self.right.bounds(*args))

    def __str__(self) -> str:
        return f"({self.left} | {self.right})"


@dataclasses.dataclass(frozen=True, eq=False)
class Not(Mask):
    """Seen where the inner mask does not see."""

    inner: Mask

    def counts(self):
        return self.inner.counts()

    def check(self, T, S):
        self.inner.check(T, S)

    def operands(self, T, S):
        return self.inner.operands(T, S)

    def evaluate(self, *args):
        return self.inner.evaluate(*args) ^ True  # Mosaic GPU of jax 0.11 cannot invert booleans

    def interval(self, *args):
        some, every = self.inner.interval(*args)
        return ~every, ~some

    def bounds(self, *args):
        some, every = self.inner.bounds(*args)
        return ~every, ~some

    def __str__(self) -> str:
        return f"~{self.inner}"


def _combine(kind: type, left: Any, right: Any) -> Any:
    if not (isinstance(left, Mask) and isinstance(right, Mask)):
        return NotImplemented
    if isinstance(left, Full) or isinstance(right, Full):
        other = right if isinstance(left, Full) else left
        return other if kind is And else Full()
    return kind(left, right)


def _both(left, right):
    return left[0] & right[0], left[1] & right[1]


def _either(left, right):
    return left[0] | right[0], left[1] | right[1]


def shape_of(array: Any) -> str:
    """How an array is shown inside a mask: such a string names the mask but cannot be parsed."""
    return f"{getattr(array, 'dtype', 'array')}{list(getattr(array, 'shape', ()))}".replace(" ", "")


def index_ranges(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last real index of each block."""
    low = np.arange(0, length, block)
    return low, np.minimum(low + block, length) - 1


def block_ranges(vector: jax.Array, block: int, real: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Least and greatest value of [B, T] in each block, [B, n]; where `real` is given, of the entries it marks.

    A block without such an entry gives (BIG, -BIG), which no comparison of ranges takes for an overlap.
    """
    low = vector if real is None else jnp.where(real, vector, BIG)
    high = vector if real is None else jnp.where(real, vector, -BIG)
    pad = -vector.shape[1] % block
    low = jnp.pad(low, ((0, 0), (0, pad)), constant_values=BIG).reshape(len(vector), -1, block)
    high = jnp.pad(high, ((0, 0), (0, pad)), constant_values=-BIG).reshape(len(vector), -1, block)
    return low.min(-1), high.max(-1)


@functools.lru_cache(maxsize=256)
def _static_tiles(mask: Mask, T: int, S: int, block_q: int, block_k: int) -> np.ndarray:
    some, every = mask.bounds(T, S, block_q, block_k)
    kinds = some.astype(np.int8) + (some & every).astype(np.int8)
    kinds = np.array(np.broadcast_to(kinds, (-(-T // block_q), -(-S // block_k))))
    unsure = np.argwhere(kinds == PARTIAL)
    if isinstance(mask, And | Or | Not) and len(unsure) * block_q * block_k <= REFINE_LIMIT:
        step = max(1, (1 << 22) // (block_q * block_k))
        for start in range(0, len(unsure), step):
            some_tiles = unsure[start : start + step]
            q = some_tiles[:, 0, None, None] * block_q + np.arange(block_q)[:, None]
            k = some_tiles[:, 1, None, None] * block_k + np.arange(block_k)[None]
            seen, real = mask.evaluate(q, k, (), (), (), T, S), (q < T) & (k < S)
            any_seen, all_seen = (seen & real).any((1, 2)), (seen | ~real).all((1, 2))
            kinds[some_tiles[:, 0], some_tiles[:, 1]] = any_seen.astype(np.int8) + (any_seen & all_seen)
    kinds.flags.writeable = False
    return kinds
