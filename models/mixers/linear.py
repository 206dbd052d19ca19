"""Linear attention and the gated delta rule: a memory `[N, H, H]` per row that every token writes to and reads."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import choices
from kernels import linear_attention as kernel
from kernels.linear_attention import LinearState
from models import norms, parameters, projections
from models.facts import Facts
from models.mixers import fast, prefixed
from models.mixers.context import Context
from models.mixers.convolution import Convolution, Three
from models.mixers.memory import Policy
from models.spec import Spec

FORGETTING = 16  # decay = logsigmoid(gate) / 16: a gate at 0 halves a memory in 16 tokens (Yang et al. 2024, GLA).
STATE_AXES = LinearState(fast.WEIGHTS, fast.ROWS)


class Convolved(NamedTuple):
    """The state of a memory behind a convolution.

    Args:
      memory: as without.
      before: the newest W - 1 of q, k and v in front of the convolution, `[B, W - 1, N H]` each.
    """

    memory: LinearState
    before: Three


class LinearAttention(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`: S_t = e^decay_t S_{t-1} + phi(k_t) v_t^T, out(RMSNorm(phi(q_t) S_t)), phi = elu + 1.

    Katharopoulos et al. 2020 also divide by phi(q_t) sum_j phi(k_j), a positive number per token and head, which the
    norm over each head cancels. With `decay` a gate per token and head shrinks the memory. Positions enter by the decay
    alone. With `prefix` a second memory, which forgets nothing, has the first tokens of the document from the start on
    (`models.mixers.prefixed`), and phi(q_t) reads the sum of both.
    """

    bidirectional = False
    sized = True
    context_parallel, layouts = True, ("contiguous",)  # A memory passes from device to device.

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["linear_attention"]
        _memory(self, spec, options, rngs)
        self.decay = fast.Gate(spec, spec.N, rngs=rngs) if options["decay"] else None
        M, size = options["prefix"], options["chunk_size"]
        self.prefix = prefixed.Prefix(spec, M, size, rngs=rngs) if M else None

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        fast.only_causal("linear_attention", context.mask)
        first = None
        if self.prefix is not None and state is not None:
            state, first = state
        (q, k, v), state, before = _read(self, x, context, state)
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        decay = None if self.decay is None else jax.nn.log_sigmoid(self.decay(x)) / FORGETTING
        out, state = _recall(self, (q, k, v, None, decay), context, state)
        state = _behind(state, before)
        if self.prefix is not None:
            more, first = self.prefix(q, x, context, first)
            out, state = out + more, None if first is None else prefixed.Prefixed(state, first)
        return self.out(self.norm(out).reshape(*x.shape[:2], -1)), state

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """A prefix is read both ways: none of its tokens may be a target, and one device reads all of them."""
        prefix = options["prefix"]
        if prefix > facts.data["given"]:
            yield (
                f"model.linear_attention.prefix={prefix} is read both ways, and targets within it would be read before "
                f"they are predicted; use data.given={prefix} or more."
            )
        if prefix and facts.ways("sequence") > 1:
            yield (
                f"model.linear_attention.prefix={prefix} is read by every token of a row, and mesh.context cuts rows; "
                "use mesh.context=1."
            )

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: its chunk in 4 C H a head, writing and reading in 4 H^2."""
        size = min(self.chunk_size, length)
        prefix = 0 if self.prefix is None else self.prefix.flops(length)
        return {"recurrent": self.N * (4 * size * self.H + 4 * self.H**2) + _convolved(self) + prefix}

    def init_state(
        self, batch: int, length: int, memory: Policy | None = None
    ) -> LinearState | Convolved | prefixed.Prefixed:
        """The empty memory of `batch` rows; the same size for any `length`."""
        empty = _empty(self, batch)
        return empty if self.prefix is None else prefixed.Prefixed(empty, self.prefix.start(batch))


class GatedDelta(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`: a memory from which a key's old value is taken before its new one is written.

    S' = e^decay_t S_{t-1}, S_t = S' + beta_t k_t (v_t - k_t^T S')^T, out(RMSNorm(q_t S_t) * silu(gate(x))). q, k: SiLU
    and length 1, v: SiLU; decay = -A softplus(W x + b) and beta = sigmoid(W x), per token and head. The published
    layer has a convolution over 4 tokens before SiLU (`conv`), and values twice as wide.

    Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"; A and b start as in Mamba-2 (Dao & Gu 2024).
    """

    bidirectional = False
    sized = True
    context_parallel, layouts = True, ("contiguous",)  # A memory passes from device to device.

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["gated_delta"]
        _memory(self, spec, options, rngs)
        self.gate = projections.make(spec, spec.D, spec.N * spec.H, axes=("embed", "heads"), rngs=rngs)
        self.beta = fast.Gate(spec, spec.N, rngs=rngs)
        self.decay = fast.Gate(spec, spec.N, bias=_small_steps, rngs=rngs)
        self.log_a = parameters.param(_log_uniform, rngs, (spec.N,), ("heads",), "bias", spec)

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        fast.only_causal("gated_delta", context.mask)
        found, state, before = _read(self, x, context, state)
        q, k, v = map(jax.nn.silu, found)
        q, k = fast.unit(q) / math.sqrt(self.H), fast.unit(k)
        beta, decay = jax.nn.sigmoid(self.beta(x)), -jnp.exp(self.log_a[...]) * jax.nn.softplus(self.decay(x))
        out, state = _recall(self, (q, k, v, beta, decay), context, state)
        gate = jax.nn.silu(self.gate(x))
        return self.out(self.norm(out).reshape(gate.shape) * gate), _behind(state, before)

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """As for linear attention, with the overlap of the keys 2 C H, their triangular system and its side 2 H^2.

        The system takes 2 C H to solve once it is inverted, for (C^3 - C) 2 / 3 a chunk of a power of two.
        """
        size = min(self.chunk_size, length)
        whole = choices.length(size)
        chunk = 8 * size * self.H + 6 * self.H**2 + 2 * (whole**3 - whole) / (3 * size)
        return {"recurrent": self.N * chunk + _convolved(self)}

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> LinearState | Convolved:
        """The empty memory of `batch` rows; the same size for any `length`."""
        return _empty(self, batch)


def _empty(mixer: Any, batch: int) -> LinearState | Convolved:
    empty = kernel.init_state(batch, mixer.N, mixer.H, mixer.H, jnp.promote_types(mixer.dtype, jnp.float32))
    return empty if mixer.conv is None else Convolved(empty, mixer.conv.start(batch))


def _memory(mixer: nnx.Module, spec: Spec, options: Mapping[str, Any], rngs: nnx.Rngs) -> None:
    """Sets the attributes of `mixer` that both layers have: projections, a convolution behind them, the norm of the
    memory's output, sizes."""
    D, N, H = spec.D, spec.N, spec.H
    mixer.q, mixer.k, mixer.v = (
        projections.make(spec, D, N * H, axes=("embed", "heads"), name=name, rngs=rngs) for name in "qkv"
    )
    mixer.out = projections.make(spec, N * H, D, axes=("heads", "embed"), residual=True, name="o", rngs=rngs)
    mixer.norm = norms.Norm(spec, H, kind="rmsnorm", scale=True, rngs=rngs)
    mixer.conv = Convolution(spec, options["conv"], rngs=rngs) if options["conv"] else None
    mixer.N, mixer.H, mixer.chunk_size = N, H, options["chunk_size"]
    mixer.dtype, mixer.partition = spec.dtype, spec.partition


def _read(mixer: Any, x: jax.Array, context: Context, state: Any) -> tuple[tuple, LinearState | None, Three | None]:
    """((q, k, v) `[B, T, N, H]` behind the convolution, the memory's state, the convolution's new one)."""
    found, before = (mixer.q(x), mixer.k(x), mixer.v(x)), None
    if mixer.conv is not None:
        state, before = (None, None) if state is None else state
        found, before = mixer.conv(found, context, before)
    return tuple(y.reshape(*y.shape[:2], mixer.N, mixer.H) for y in found), state, before


def _behind(memory: LinearState | None, before: Three | None) -> LinearState | Convolved | None:
    return memory if before is None else Convolved(memory, before)


def _convolved(mixer: Any) -> int:
    return mixer.conv.flops() if mixer.conv is not None else 0


def _recall(
    mixer: Any, tokens: tuple, context: Context, state: LinearState | None
) -> tuple[jax.Array, LinearState | None]:
    """The kernel on every device's own rows and heads; tokens: (q, k, v, beta or None, decay or None)."""
    if state is not None:  # Padding writes nothing and forgets nothing.
        real = (context.positions >= 0)[:, :, None]
        blank = lambda y: y if y is None else jnp.where(real.reshape(*real.shape, *[1] * (y.ndim - 3)), y, 0)  # noqa: E731
        tokens = (tokens[0], *map(blank, tokens[1:]))

    def run(tokens, kept):
        q, k, v, beta, decay = tokens
        args = (q, k, v) if beta is None else (q, k, v, beta)
        op = kernel.linear_attention if beta is None else kernel.gated_delta_rule
        options = {name: kept.get(name) for name in ("segment_ids", "state")}
        options["axis"] = fast.shared_by(mixer.partition)
        out, after = op(*args, decay=decay, chunk_size=mixer.chunk_size, **options)  # ty: ignore
        return out, None if kept["state"] is None else after

    state_axes = None if state is None else STATE_AXES
    kept, kept_axes = fast.kept(context, state, state_axes)
    rates = (None if y is None else fast.RATES for y in tokens[3:])
    axes = ((*(fast.TOKENS,) * 3, *rates), kept_axes)
    return mixer.partition.run(run, (tokens, kept), axes, (fast.TOKENS, state_axes))


def _small_steps(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """b with softplus(b) log-uniform in [0.001, 0.1]."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))


def _log_uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """log A with A uniform in [1, 16]."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


PARTS = {"linear_attention": LinearAttention, "gated_delta": GatedDelta}
