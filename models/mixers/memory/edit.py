"""Keys at other positions: re-rotation, PIE's edits of a prompt, positions in the cache. docs/cache.md lists them."""

import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def rotate(x: jax.Array, positions: jax.Array, *, theta: float = 10000.0, pairing: str = "half") -> jax.Array:
    """R(position) x: each pair of channels i turned by position * theta^(-2i/H).

    Args:
      x: `[..., S, H]` or `[..., S, K, H]` whose axis S has `positions`, which broadcast against it; see the shapes.
      positions: numbers of the shape of x without H, or one that broadcasts to it.
      theta: base of the frequencies.
      pairing: "half" pairs channel i with i + H/2 (GPT-NeoX, Llama), "interleaved" pairs 2i with 2i + 1 (GPT-J).

    Errors: ValueError for another pairing.
    """
    H = x.shape[-1]
    angle = jnp.asarray(positions, x.dtype)[..., None] * theta ** (-jnp.arange(0, H, 2, dtype=x.dtype) / H)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if pairing == "half":
        a, b = x[..., : H // 2], x[..., H // 2 :]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    if pairing != "interleaved":
        raise ValueError(f"pairing={pairing!r} is unknown; use 'half' or 'interleaved'.")
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def rerotate(k: jax.Array, old: jax.Array, new: jax.Array, *, theta: float = 10000.0, pairing: str = "half"):
    """K' = R(new - old) K: keys rotated at `old` as if they had been at `new`; R(b - a) R(a) k = R(b) k.

    `k [..., S, H]` (or `[..., S, K, H]` with positions `[..., S, 1]`). Source: He et al. 2024, arXiv:2407.03157 (PIE).
    """
    return rotate(k, jnp.asarray(new) - jnp.asarray(old), theta=theta, pairing=pairing)


class Edit(NamedTuple):
    """How a prompt became another: `source [n]` for each new token the old one that it is, -1 = inserted."""

    source: np.ndarray

    @property
    def computed(self) -> float:
        """The share of tokens that are computed anew."""
        return float((self.source < 0).mean()) if self.source.size else 0.0


def saved(source: np.ndarray, *, linear: float, pair: float) -> float:
    """The share of a full recompute's FLOPs that is saved: 1 - sum_{i computed} c_i / sum_i c_i.

    c_i = linear + pair (i + 1): token i passes the linear maps and attends to i + 1 tokens.

    Args:
      source: `[n]`, `Edit.source`.
      linear: FLOPs a token in the linear maps of all layers, 2 a parameter.
      pair: FLOPs of a query and a key in all layers, 4 N H L.
    """
    cost = linear + pair * (1.0 + np.arange(len(source)))
    return 1.0 - float(cost[np.asarray(source) < 0].sum() / cost.sum())


def edited(old: list[int], new: list[int]) -> Edit:
    """What PIE keeps of the tokens `old` when the prompt becomes `new`: the blocks that the shortest script leaves.

    Tokens of blocks that both have keep their keys and values; the others of `new` are computed again, and the last
    token always is, because its logits are what follows.
    """
    source = np.full(len(new), -1, np.int32)
    for block in difflib.SequenceMatcher(None, list(old), list(new), autojunk=False).get_matching_blocks():
        source[block.b : block.b + block.size] = np.arange(block.a, block.a + block.size)
    source[-1:] = -1
    return Edit(source)


def pie(
    k: jax.Array, v: jax.Array, source: jax.Array, *, theta: float = 10000.0, pairing: str = "half"
) -> tuple[jax.Array, jax.Array]:
    """(K', V') of an edited prompt: kept keys re-rotated to their new places, values as they were, zeros elsewhere.

    Args:
      k: `[n, K, H]`, rotated at 0 .. n - 1.
      v: `[n, K, H]`.
      source: `[m]` integers, `edited(...).source`.
      theta, pairing: of the rotation.
    """
    at = jnp.maximum(source, 0)
    there = (source >= 0)[:, None, None]
    moved = rerotate(k[at], at[:, None], jnp.arange(source.shape[0])[:, None], theta=theta, pairing=pairing)
    return jnp.where(there, moved, 0), jnp.where(there, v[at], 0)
