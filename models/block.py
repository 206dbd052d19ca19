"""One layer: pre-norm mixer and pre-norm channel on a residual stream, and the stack that repeats it over depth."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import norms
from models.channels import CHANNELS
from models.mixers import MIXERS, Context
from models.spec import Spec

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


# What a device holds of the residual stream, and what mixers and channels read and write.
STREAM, TOKENS = ("batch", "stream", None), ("batch", "sequence", None)


class Block(nnx.Module):
    """`x + mixer(norm(x))`, then `x + channel(norm(x))`; x `[B, T, D]`.

    Where the mesh cuts the stream, sums of parts of heads or of hidden widths are scattered over tokens, added and
    normalised there, and gathered for the next part, instead of being summed on every device: as many bytes, and one
    part of the norm, the addition and what the backward pass keeps of them (Korthikanti et al. 2022, "Reducing
    Activation Recomputation in Large Transformer Models", section 4.2.2; TokenWeave, 2025, fuses the three).
    """

    def __init__(self, spec: Spec, mixer: str, *, rngs: nnx.Rngs):
        self.mixer_norm = norms.make(spec, rngs=rngs)
        self.mixer = MIXERS[mixer](spec, rngs=rngs)
        self.channel_norm = norms.make(spec, rngs=rngs)
        self.channel = CHANNELS[spec.channel](spec, rngs=rngs)
        self.partition, self.share = spec.partition, spec.sizes.branch

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        y, state = self.mixer(self._whole(self.mixer_norm(x)), context, state)
        x = x + self.joining(y)
        x = x + self.joining(self.channel(self._whole(self.channel_norm(x))))
        return self.partition.constrain(x, STREAM), state

    def _whole(self, x: jax.Array) -> jax.Array:
        return self.partition.exchange(x, STREAM, TOKENS) if self.partition.cuts_stream else x

    def joining(self, y: jax.Array) -> jax.Array:
        """What a branch adds to the stream: cut as the stream is, scaled by the depth of the model."""
        y = self.partition.exchange(y, TOKENS, STREAM) if self.partition.cuts_stream else y
        return y if self.share == 1.0 else y * jnp.asarray(self.share, y.dtype)


class Period(nnx.Module):
    """The blocks of one repetition of the mixer pattern, e.g. one of "attention" or three of "lact,lact,attention"."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.names = tuple(f"{i}_{name}" for i, name in enumerate(spec.mixers))
        for name, mixer in zip(self.names, spec.mixers, strict=True):
            setattr(self, name, Block(spec, mixer, rngs=rngs))

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        state = dict.fromkeys(self.names) if state is None else dict(state)
        for name in self.names:
            x, state[name] = getattr(self, name)(x, context, state[name])
        return x, state


class Stack(nnx.Module):
    """L layers as one Period whose parameters carry a leading dimension; x `[B, T, D] -> [B, T, D]`.

    Training scans over them, unrolled as `spec.unroll` says. Decoding first calls `unstack`, because a scan would copy
    every layer's cache at each token.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        repeats = spec.L // len(spec.mixers)

        @nnx.split_rngs(splits=repeats)
        @nnx.vmap
        def build(rngs: nnx.Rngs) -> Period:
            return Period(spec, rngs=rngs)

        self.period = build(rngs)
        self.remat = spec.remat
        self.repeats = repeats
        self.unroll = max(1, min(repeats, spec.unroll // len(spec.mixers)))

    def __call__(self, x: jax.Array, context: Context, state: None = None) -> tuple[jax.Array, None]:
        graphdef, params = nnx.split(self.period)

        def layer(x: jax.Array, params: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, params)(x, context)[0], None

        if REMAT[self.remat] is not None:
            layer = jax.checkpoint(layer, policy=REMAT[self.remat])
        return jax.lax.scan(layer, x, params, unroll=self.unroll)

    def unstack(self, layers: tuple | None = None) -> "Unstacked":
        """The same layers one by one; `layers` holds the parameters of each as plain dicts, if they are cut already."""
        graphdef, params = nnx.split(self.period)
        if layers is None:
            layers = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(self.repeats)]
        return Unstacked(tuple(nnx.merge(graphdef, layer) for layer in layers))


class Unstacked:
    """A stack whose layers stand one by one, for decoding: each keeps its own state and nothing is copied."""

    def __init__(self, periods: tuple[Period, ...]):
        self.periods = periods

    def __call__(self, x: jax.Array, context: Context, state: tuple) -> tuple[jax.Array, tuple]:
        new = []
        for period, old in zip(self.periods, state, strict=True):
            x, after = period(x, context, old)
            new.append(after)
        return x, tuple(new)

    def init_state(self, batch: int, length: int) -> tuple:
        """The empty decoding state of every layer."""
        return tuple(
            {name: getattr(period, name).mixer.init_state(batch, length) for name in period.names}
            for period in self.periods
        )
