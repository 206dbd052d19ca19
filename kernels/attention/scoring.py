"""The records that implementations of attention take and return: what makes scores, and what comes of them."""

import dataclasses
from typing import Any, NamedTuple

import jax

from kernels.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scoring:
    """What makes the score of a query and a key: softcap(scale q.k + bias) where `mask` sees, -inf elsewhere.

    mask: which keys each query sees.
    scale: static, the factor of q.k.
    bias: None, or 4 axes broadcastable to [B, N, T, S].
    softcap: static; None, or the cap of softcap(x) = cap tanh(x / cap).
    sinks: None, or [N], the score of one more key of each head, whose value is zero.
    """

    mask: Mask
    scale: float = dataclasses.field(metadata={"static": True})
    bias: jax.Array | None = None
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})
    sinks: jax.Array | None = None

    def gradients(self, bias: jax.Array | None, sinks: jax.Array | None) -> "Scoring":
        """The cotangent of this record: masks have none."""
        return dataclasses.replace(self, mask=None, bias=bias, sinks=sinks)


class Result(NamedTuple):
    """What attention returns, or the cotangents of it.

    out: [B, T, N, H].
    lse: [B, N, T], natural log. As a cotangent it may be None, which is zero.
    """

    out: jax.Array
    lse: Any
