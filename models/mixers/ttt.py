"""TTT-Linear and TTT-MLP: a small model per head that learns values from keys, a mini-batch of tokens at a time."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import ttt
from kernels.ttt import TTTParams, TTTState
from models import norms, parameters, projections, rope
from models.mixers import fast
from models.mixers.context import Context
from models.mixers.memory import Policy
from models.spec import Spec

WEIGHT_STD, EPSILON = 0.02, 1e-6


class _TTT(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`: out(LayerNorm(f(q))), f trained on (k, v) of this and earlier tokens; N heads of H.

    Token j's rate is base_rate * sigmoid(gate(x_j)) / H. Rotary positions count within a mini-batch. Rotate-half pairs
    here, interleaved ones in the released code: the same layer with the channels of every head permuted. The released
    TTT-MLP also warms its base_rate up over the first tenth of the steps, which a layer cannot know; here it is fixed.

    Source: Sun et al. 2024, "Learning to (Learn at Test Time)", sections 2 and 3.
    """

    bidirectional = False
    computed_again = 1
    name: ClassVar[str]
    op: ClassVar[Callable]

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options[self.name]
        D, N, H = spec.D, spec.N, spec.H
        self.q, self.k, self.v = (
            projections.make(spec, D, N * H, axes=("embed", "heads"), name=name, rngs=rngs) for name in "qkv"
        )
        self.out = projections.make(spec, N * H, D, axes=("heads", "embed"), residual=True, name="o", rngs=rngs)
        self.gate = projections.make(spec, D, N * H, axes=("embed", "heads"), rngs=rngs) if options["gate"] else None
        self.rate = fast.Gate(spec, N, rngs=rngs)
        self.widths = (H, *self.hidden(options, H), H)
        for i, (a, c) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            setattr(self, f"w{i}", fast.start(parameters.normal(WEIGHT_STD), rngs, (N, a, c), spec))
            setattr(self, f"b{i}", fast.start(parameters.zeros, rngs, (N, c), spec))
        per_head = lambda init, role: parameters.param(init, rngs, (N, H), ("heads", None), role, spec)  # noqa: E731
        self.scale, self.shift = per_head(parameters.ones, "norm"), per_head(parameters.zeros, "bias")
        self.position = parameters.param(parameters.zeros, rngs, (options["mini_batch"],), (None,), "bias", spec)
        self.norm = norms.Norm(spec, N * H, kind="layernorm", scale=True, bias=True, eps=EPSILON, rngs=rngs)
        self.mini_batch, self.base_rate, self.theta = (options[k] for k in ("mini_batch", "base_rate", "rope_theta"))
        self.N, self.H, self.dtype, self.partition = N, H, spec.dtype, spec.partition

    def params(self) -> TTTParams:
        """The kernel's parameters: the weights at the start of a document, the norm and the rates."""
        layers = tuple(
            (getattr(self, f"w{i}")[...][None], getattr(self, f"b{i}")[...][None]) for i in range(len(self.widths) - 1)
        )
        return TTTParams(layers, self.scale[...], self.shift[...], self.position[...])

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        fast.only_causal(self.name, context.mask)
        q, k, v = (y.reshape(*y.shape[:2], self.N, self.H) for y in (self.q(x), self.k(x), self.v(x)))
        q, k = (rope.rotate(y, context.positions % self.mini_batch, theta=self.theta) for y in (q, k))
        eta = self.base_rate * jax.nn.sigmoid(self.rate(x)) / self.H
        out, state = self._learn((q, k, v, eta), context, state)
        out = self.norm(out.reshape(*x.shape[:2], -1))
        if self.gate is not None:
            out = out * jax.nn.gelu(self.gate(x), approximate=True)
        return self.out(out), state

    def _learn(self, tokens: tuple, context: Context, state: TTTState | None) -> tuple[jax.Array, TTTState | None]:
        """The kernel on every device's own rows and heads; tokens: (q, k, v, eta)."""

        def run(tokens, params, kept):
            out, after = type(self).op(*tokens, params, mini_batch=self.mini_batch, **kept)
            return out, None if kept["state"] is None else after

        depth = len(self.widths) - 1
        start = ((None, "heads", None, None), (None, "heads", None))
        params_axes = TTTParams((start,) * depth, ("heads", None), ("heads", None), (None,))
        after = ((fast.WEIGHTS, ("batch", "heads", None)),) * depth
        chunk = (fast.TOKENS, fast.TOKENS, fast.RATES)
        state_axes = None if state is None else TTTState(after, chunk, fast.ROWS, fast.ROWS)
        kept, kept_axes = fast.kept(context, state, state_axes)
        axes = ((fast.TOKENS, fast.TOKENS, fast.TOKENS, fast.RATES), params_axes, kept_axes)
        return self.partition.run(run, (tokens, self.params(), kept), axes, (fast.TOKENS, state_axes))

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> TTTState:
        """The state before the first token of `batch` rows; the same size for any `length`."""
        kind = {"dtype": self.dtype, "eta_dtype": jnp.promote_types(self.dtype, jnp.float32)}
        return ttt.init_state(self.params(), batch, mini_batch=self.mini_batch, **kind)

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: reading, the inner gradient, the dual form, the update.

        Per map a -> c of a head, with mini-batches of K: 2 a c to evaluate at the key, 2 a c at the query, 2 K (a + c)
        for the dual form, 2 a c for the update (none after the last mini-batch), and 2 a c for the gradient through
        every map but the first.
        """
        size = min(self.mini_batch, length)
        learned = (-(-length // size) - 1) * size / length
        pairs = list(zip(self.widths, self.widths[1:], strict=False))
        maps = sum((4 + 2 * learned) * a * c + 2 * size * (a + c) for a, c in pairs)
        return {"fast": self.N * (maps + sum(2 * a * c for a, c in pairs[1:]))}


class TTTLinear(_TTT):
    """f(x) = x + LN(x W + b); see `_TTT`."""

    name, op = "ttt_linear", staticmethod(ttt.ttt_linear)
    hidden = staticmethod(lambda options, H: ())


class TTTMLP(_TTT):
    """f(x) = x + LN(gelu(x W1 + b1) W2 + b2), hidden width F = `hidden_ratio` H; see `_TTT`."""

    name, op = "ttt_mlp", staticmethod(ttt.ttt_mlp)
    hidden = staticmethod(lambda options, H: (round(options["hidden_ratio"] * H),))


PARTS = {"ttt_linear": TTTLinear, "ttt_mlp": TTTMLP}
