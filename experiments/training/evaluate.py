"""Held-out likelihood in bits per byte of the original text, with its standard error."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.program import Program, global_batch, sharding
from models.objectives import noise


def make_step(program: Program) -> Callable:
    """Jitted `(params, batch, first, token_bytes) -> [rows, 3]`: nats, valid targets and their bytes of text, of each
    row of a global batch that begins with row `first` of all. A row's noise follows from its number.
    """

    def step(params: Any, batch: dict, first: jax.Array, token_bytes: jax.Array) -> jax.Array:
        keys = noise.row_keys(jax.random.key(0), first, len(batch["tokens"]))
        nats = program.objective.row_nll(program.merge(params), batch, keys)
        sizes = token_bytes[jnp.minimum(batch["targets"], len(token_bytes) - 1)]
        valid, text = (jnp.sum(jnp.where(batch["scored"], x, 0), axis=-1) for x in (1, sizes))
        return jnp.stack([nats, valid.astype(nats.dtype), text.astype(nats.dtype)], axis=-1)

    return program.jit(step, out_shardings=sharding.replicated(program.mesh))


def evaluate(
    program: Program, step: Callable, params: Any, batches: Iterable[dict], token_bytes: np.ndarray
) -> dict[str, Any]:
    """Mean over all batches.

    Args:
      program: what is evaluated.
      step: from `make_step`.
      params: on the program's mesh.
      batches: this process's rows of each global batch (numpy).
      token_bytes: `[V]` bytes of text behind each token id.

    Returns:
      `eval/loss` (nats a token), `eval/bits_per_byte`, its standard error over rows, `eval/tokens`, and `eval/kind`:
      "=" for an exact likelihood, "<=" for a bound, "~" for what is neither.
    """
    return summary(measured(program, step, params, batches, token_bytes), program.objective.bound)


def measured(
    program: Program, step: Callable, params: Any, batches: Iterable[dict], token_bytes: np.ndarray
) -> np.ndarray:
    """`[rows, 3]` float64: nats, valid targets and their bytes of text, of every row; arguments as of `evaluate`."""
    rows, token_bytes, first = [], np.asarray(token_bytes, np.int32), 0
    for batch in batches:
        rows.append(step(params, global_batch(batch, program), np.int32(first), token_bytes))
        first += len(batch["tokens"]) * program.rows[1]
    return np.concatenate([np.asarray(r, np.float64) for r in jax.device_get(rows)])


def summary(rows: np.ndarray, kind: str) -> dict[str, Any]:
    """What `evaluate` returns, of independent rows `[n, 3]` as `measured` gives them; those without targets are left
    out. `kind`: of the likelihood."""
    nats, tokens, sizes = rows[rows[:, 1] > 0].T
    bits = nats.sum() / math.log(2) / max(sizes.sum(), 1.0)
    return {
        "eval/loss": float(nats.sum() / max(tokens.sum(), 1)),
        "eval/bits_per_byte": float(bits),
        "eval/bits_per_byte_se": ratio_standard_error(nats / math.log(2), sizes),
        "eval/tokens": int(tokens.sum()),
        "eval/kind": kind,
    }


def bits_a_byte(nats: np.ndarray, sizes: np.ndarray) -> str:
    """Bits per byte of documents, nats and bytes `[n]` of each, in words: of several with their standard error."""
    bits = nats / math.log(2)
    error = ratio_standard_error(bits, sizes)
    return f"{bits.sum() / sizes.sum():.4f}" + ("" if math.isnan(error) else f" (standard error {error:.4f})")


def not_finite(found: dict[str, Any]) -> str:
    """The first measure of an evaluation that is NaN or Inf, as "eval/loss=nan"; "" if all are finite."""
    wrong = [f"{name}={found[name]}" for name in ("eval/loss", "eval/bits_per_byte") if not math.isfinite(found[name])]
    return " and ".join(wrong)


def ratio_standard_error(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Standard error of sum(numerator) / sum(denominator) over independent rows `[n]` (linearised); NaN of one row."""
    n, total = len(numerator), denominator.sum()
    if n < 2 or total == 0:
        return float("nan")
    residual = numerator - numerator.sum() / total * denominator
    return float(math.sqrt(n / (n - 1) * np.sum(residual**2)) / total)
