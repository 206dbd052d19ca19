"""Experts out of a trained dense layer: copies, or slices of the hidden width, with router rows to go with them.

At the start the mixture equals the dense layer exactly where the gates of a token's chosen slices are as stated.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np


def copies(weight: Any, experts: int) -> jnp.ndarray:
    """The dense layer's array once for each expert: `[...] -> [E, ...]`. Exact where the gates sum to 1."""
    weight = jnp.asarray(weight)
    return jnp.broadcast_to(weight, (experts, *weight.shape))


def slices_up(weight: Any, pieces: int, copies: int = 1) -> jnp.ndarray:
    """Columns of W_up (or W_gate) `[D, F]` as N x k experts `[N k, D, F / k]`, slices of a copy neighbours."""
    weight = jnp.asarray(weight)
    D, F = weight.shape
    cut = jnp.moveaxis(weight.reshape(D, pieces, F // pieces), 1, 0)
    return jnp.tile(cut, (copies, 1, 1))


def slices_down(weight: Any, pieces: int, copies: int = 1) -> jnp.ndarray:
    """Rows of W_down `[F, D]` as N x k experts `[N k, F / k, D]`."""
    weight = jnp.asarray(weight)
    return jnp.tile(weight.reshape(pieces, -1, weight.shape[1]), (copies, 1, 1))


def slices_up_bias(bias: Any, pieces: int, copies: int = 1) -> jnp.ndarray:
    """The hidden bias `[F]` as `[N k, F / k]`."""
    return jnp.tile(jnp.asarray(bias).reshape(pieces, -1), (copies, 1))


def slices_down_bias(bias: Any, pieces: int, copies: int = 1) -> jnp.ndarray:
    """The output bias `[D]` as `[N k, D]`, each b / k: the k slices of a copy add up to b once."""
    return jnp.tile(jnp.asarray(bias)[None] / pieces, (copies * pieces, 1))


def router_rows(weight: Any, pieces: int) -> jnp.ndarray:
    """A router `[D, N]` of the copies with each column k times, `[D, N k]`.

    The k slices of a copy then have equal logits, and the k chosen experts are all slices of the best copy: ties go to
    the lowest index, and slices of a copy are neighbours. Source: Dynamic-DINO (Lu et al. 2025, arXiv:2507.17436).
    """
    return jnp.repeat(jnp.asarray(weight), pieces, axis=1)


def gate_scale(pieces: int, renormalised: bool) -> float:
    """By what gates are multiplied so that the mixture of slices starts as the dense layer: chosen copies weigh 1.

    With `router_rows` the chosen experts are all slices of the best copies. Renormalised gates give a slice of copy c
    the weight w_c / k with sum w_c = 1: the factor is k (`pieces`). Gates that are 1 already need none.
    """
    return float(pieces) if renormalised else 1.0


def megatron_scale(granularity: int, expansion: int, k: int, *, after: bool, gated: bool) -> float:
    """What Megatron's upcycling multiplies every weight by.

    s = granularity (softmax after the choice), or expansion granularity^2 / K (before); weights get s^(1/3) each where
    the unit is gated (three of them), s^(1/2) otherwise.
    """
    s = granularity if after else expansion * granularity**2 / k
    return float(s ** (1 / 3 if gated else 1 / 2))


def perturbed(rows: Any, std: float, seed: int) -> np.ndarray:
    """Router columns `[D, E]` plus N(0, std^2): breaks the ties of copies, and so the exact start, on purpose."""
    rows = np.asarray(rows)
    return rows + std * np.random.default_rng(seed).normal(size=rows.shape)
