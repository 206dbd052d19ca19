"""What a token of the backbone is made of: the bytes of its segment, by their mean or by attention to them.

A pool is built by `(spec, *, rngs)` with the spec of the bytes' layers and called as `(Members, held, none) -> (vectors
[B, S, width], held)`; `none [width]` is the vector of a token without bytes. `held` is kept of bytes whose token is
still to come, `start(batch)` is that before a row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models import norms, parameters
from models.products import by_rows
from models.segments import cuts
from models.spec import Spec

Held = dict[str, jax.Array]


class Members(NamedTuple):
    """Bytes and their tokens in one pass."""

    hidden: jax.Array  # [B, T, D] behind the encoder
    member: jax.Array  # [B, T, S] which bytes are whose
    segment: jax.Array  # [B, T] number of each byte's token
    rest: jax.Array  # [B, T] bool, bytes behind the last mark
    goes_on: jax.Array  # [B] bool: nothing was marked, and what is held stays


class Mean(nnx.Module):
    """The mean of the bytes."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.width, self.wide = spec.D, jnp.promote_types(spec.dtype, jnp.float32)

    def start(self, batch: int) -> Held:
        """Sum and number of the bytes."""
        return {"total": jnp.zeros((batch, self.width), self.wide), "count": jnp.zeros((batch,), jnp.float32)}

    def __call__(self, bytes_: Members, held: Held, none: jax.Array) -> tuple[jax.Array, Held]:
        hidden, rest, goes_on = bytes_.hidden, bytes_.rest, bytes_.goes_on
        made = cuts.mean(hidden, bytes_.member, held["total"], held["count"], none)
        total = jnp.einsum("btd,bt->bd", hidden.astype(self.wide), rest.astype(self.wide))
        return made, {
            "total": total + jnp.where(goes_on[:, None], held["total"], 0),
            "count": jnp.sum(rest, axis=1, dtype=jnp.float32) + jnp.where(goes_on, held["count"], 0),
        }

    def flops(self, tokens: int) -> float:
        """Of a byte, forward, in a row with so many tokens."""
        return 2.0 * tokens * self.width


class Attention(nnx.Module):
    """Attention of Q learned queries to the bytes of a segment, their results side by side, `[Q D]`.

    One query is the cross-attention of HAT's words (Neitemeier et al. 2025, arXiv:2501.10322); several are the vectors
    that Learn Your Tokens makes of a word (Thawani et al. 2023, arXiv:2310.11628), whose queries are tokens of the
    encoder itself. Heads are those of the bytes' layers. A softmax over bytes that come one by one is kept as its
    largest score, the sum of its weights, and their sum with values.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        D, self.N, self.Q = spec.D, spec.N, spec.options["segmented"]["queries"]
        self.H, self.width, self.wide = D // self.N, self.Q * D, jnp.promote_types(spec.dtype, jnp.float32)
        std = parameters.normal(parameters.kernel_std(spec, D, "embed", residual=False))
        self.norm = norms.make(spec, rngs=rngs)
        self.query = parameters.param(std, rngs, (self.Q, D), (None, None), "kernel", spec)
        self.key = parameters.param(std, rngs, (D, D), ("embed", None), "kernel", spec)
        self.value = parameters.param(std, rngs, (D, D), ("embed", None), "kernel", spec)

    def start(self, batch: int) -> Held:
        """Of each query and head: largest score, sum of weights, sum of values with weights."""
        rows = (batch, self.Q * self.N)
        return {
            "peak": jnp.full(rows, cuts.LOW, self.wide),
            "weight": jnp.zeros(rows, self.wide),
            "total": jnp.zeros((*rows, self.H), self.wide),
        }

    def __call__(self, bytes_: Members, held: Held, none: jax.Array) -> tuple[jax.Array, Held]:
        x = self.norm(bytes_.hidden)
        key, value, query = (each[...].astype(x.dtype) for each in (self.key, self.value, self.query))
        heads = lambda y: y.reshape(*y.shape[:-1], self.N, self.H)  # noqa: E731
        k, v = (heads(by_rows(lambda x, w=w: x @ w, x)).astype(self.wide) for w in (key, value))
        scores = jnp.einsum("btnh,qnh->btqn", k, heads(query).astype(self.wide)) / self.H**0.5
        values = jnp.broadcast_to(v[:, :, None], (*scores.shape, self.H))
        flat = lambda y: y.reshape(*y.shape[:2], self.Q * self.N, *y.shape[4:])  # noqa: E731
        scores, values = flat(scores), flat(values)
        made = cuts.attended(scores, values, bytes_.member, bytes_.segment, held)
        some = (jnp.sum(bytes_.member, axis=1) > 0.5).at[:, 0].set(made.weight[:, 0, 0] > 0)
        vectors = made.total / jnp.where(some[..., None], made.weight, 1)[..., None]
        vectors = vectors.reshape(*vectors.shape[:2], self.width).astype(x.dtype)
        vectors = jnp.where(some[..., None], vectors, none.astype(x.dtype))
        return vectors, cuts.going_on(scores, values, bytes_.rest, bytes_.goes_on, held)._asdict()

    def flops(self, tokens: int) -> float:
        """As `Mean.flops`, beside the products with kernels."""
        return 2.0 * tokens * (self.width + self.Q * self.N)


POOLS = {"mean": Mean, "attention": Attention}
