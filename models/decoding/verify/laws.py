"""The exact law of what a rule of verification gives, by summing over all drafts, in float64 (tiny alphabets).

The chances that `siblings` computes are summed over, so that the law is of the code that runs; randomness is
integrated: a draft stays with its chance, and the token that follows has the law that the rule leaves.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.verify.siblings import Rule

Laws = Callable[[tuple[int, ...]], np.ndarray]  # A prefix -> the law of its next token, `[V]`.


def drawn(q: np.ndarray, k: int, replace: bool) -> Iterator[tuple[tuple[int, ...], float, np.ndarray]]:
    """(drafts, their probability, the laws they came from `[k, V]`) of every way to draw k tokens from q `[V]`.

    Without replacement fewer are drawn where q has no mass left: the rest are -1, their laws zero.
    """
    q = np.asarray(q, np.float64)

    def go(drafts: tuple, weight: float, laws: list, left: np.ndarray) -> Iterator:
        total = left.sum()
        if len(drafts) == k or total <= 0:
            missing = k - len(drafts)
            yield drafts + (-1,) * missing, weight, np.array([*laws, *[np.zeros_like(q)] * missing])
            return
        law = left / total
        for x in np.flatnonzero(law):
            after = left if replace else np.where(np.arange(len(q)) == x, 0, left)
            yield from go((*drafts, int(x)), weight * law[x], [*laws, law], after)

    yield from go((), 1.0, [], q)


def one_node(rule: Rule, p: np.ndarray, q: np.ndarray, k: int, replace: bool) -> tuple[np.ndarray, float]:
    """(law of the first token `[V]`, chance that a draft stays) of k drafts of q `[V]` against p `[V]`.

    Needs 64-bit types (`jax.enable_x64`).
    """
    drafts, weight, laws = (np.array(each) for each in zip(*drawn(q, k, replace), strict=True))
    return mix(*_decided(rule, p, laws, drafts), drafts, weight)


def _decided(rule: Rule, p: np.ndarray, laws: np.ndarray, drafts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """accept `[M, K]` and rest `[M, V]` of M tuples of drafts; all sizes of M up to V^K are one program."""
    M, K, V = laws.shape
    more = ((0, V**K - M), (0, 0))
    found = _many(rule, jnp.asarray(p), np.pad(laws, (*more, (0, 0))), np.pad(drafts, more, constant_values=-1))
    return tuple(np.asarray(array)[:M] for array in found)


@functools.partial(jax.jit, static_argnums=0)
def _many(rule: Rule, p: jax.Array, laws: jax.Array, drafts: jax.Array):
    return jax.vmap(rule, (None, 0, 0, 0))(p, laws, jnp.maximum(drafts, 0), drafts >= 0)


def mix(accept: np.ndarray, rest: np.ndarray, drafts: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """(law `[V]`, chance that a draft stays): accept, drafts `[M, K]`, rest `[M, V]`, weight `[M]`."""
    alive, law, kept = weight.astype(np.float64), np.zeros(rest.shape[-1]), 0.0
    for i in range(drafts.shape[1]):
        stays = alive * accept[:, i]
        np.add.at(law, np.maximum(drafts[:, i], 0), stays)
        kept, alive = kept + stays.sum(), alive - stays
    return law + alive @ rest, float(kept)


def one_tree(
    rule: Rule, target: Laws, draft: Laws, widths: tuple[int, ...], replace: bool, prefix: tuple[int, ...] = ()
) -> dict[tuple[int, ...], float]:
    """Law of the tokens that one round emits after `prefix`, from a tree of widths[d] children per node of depth d.

    The children of every node are drawn from draft(prefix of the node); string -> probability, of 1 to
    len(widths) + 1 tokens each.
    """
    p = np.asarray(target(prefix), np.float64)
    if not widths:
        return {(x,): float(p[x]) for x in np.flatnonzero(p)}
    ways = list(drawn(draft(prefix), widths[0], replace))
    drafts, weight, laws = (np.array(each) for each in zip(*ways, strict=True))
    accept, rest = _decided(rule, p, laws, drafts)
    out, stays, alive = {}, np.zeros(len(p)), weight.astype(np.float64)
    for i in range(drafts.shape[1]):
        np.add.at(stays, np.maximum(drafts[:, i], 0), alive * accept[:, i])
        alive = alive * (1 - accept[:, i])
    for x, mass in enumerate(alive @ rest):
        if mass > 0:
            out[(x,)] = out.get((x,), 0.0) + mass
    # Below the child that stays the tree was drawn independently of its siblings.
    for x in np.flatnonzero(stays):
        for string, mass in one_tree(rule, target, draft, widths[1:], replace, (*prefix, int(x))).items():
            out[(int(x), *string)] = out.get((int(x), *string), 0.0) + stays[x] * mass
    return out


def rounds(
    emit: Callable[[tuple[int, ...]], dict[tuple[int, ...], float]], length: int, size: int
) -> tuple[np.ndarray, float]:
    """(law of the first `length` tokens `[size] * length`, expected rounds) when rounds follow one another.

    emit(prefix) is the law of the strings of one round; what goes beyond `length` is cut.
    """
    waiting = [dict() for _ in range(length)]
    waiting[0][()] = 1.0
    law, count = np.zeros((size,) * length), 0.0
    for n in range(length):
        for prefix, mass in waiting[n].items():
            count += mass
            for string, chance in emit(prefix).items():
                text = (prefix + string)[:length]
                if len(text) == length:
                    law[text] += mass * chance
                else:
                    waiting[len(text)][text] = waiting[len(text)].get(text, 0.0) + mass * chance
    return law, count


def sequential(target: Laws, length: int, size: int) -> np.ndarray:
    """Law of strings drawn token by token, `[size] * length`."""
    law = np.zeros((size,) * length)
    for text in itertools.product(range(size), repeat=length):
        law[text] = np.prod([target(text[:i])[x] for i, x in enumerate(text)])
    return law


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the sum of |p - q|."""
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())
