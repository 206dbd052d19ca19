"""One layer: a mixer and a channel with their norms on a residual stream, and the stack that repeats it over depth."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models import norms, reports
from models.channels import CHANNELS
from models.mixers import MIXERS, together
from models.mixers.context import SITES, Context
from models.mixers.memory import Policy
from models.mixers.prefill import Prefill
from models.spec import Spec

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# By name: whether a norm stands before each part, and whether one stands behind it.
NORM_PLACES = {"pre": (True, False), "post": (False, True), "sandwich": (True, True)}


def same(x: jax.Array) -> jax.Array:
    """In place of a norm that is not there."""
    return x


# STREAM: axes of the residual stream. TOKENS: axes of the arrays that mixers and channels read and write.
STREAM, TOKENS = ("batch", "stream", None), ("batch", "sequence", None)


class Pass(NamedTuple):
    """The result of a pass through all layers."""

    features: jax.Array  # [B, T, D]
    state: Any  # the decoding state after it; None in training
    report: dict[str, Any]  # entries reported by the layers, `[L', ...]` each; see models/reports.py


class Through(NamedTuple):
    """The result of one layer, or of the layers of one period."""

    x: jax.Array  # [B, T, D]
    state: Any
    report: dict[str, Any]  # of a period: by the names of its blocks
    flow: dict[str, jax.Array]  # for the next layer


class Block(nnx.Module):
    """`x + mixer(norm(x))`, then `x + channel(norm(x))`; x `[B, T, D]`.

    `model.norm_place` says whether norms stand before the parts, behind them or both; with `model.parallel` both parts
    read the same x.

    Where the mesh cuts the stream, a sum over heads or hidden widths is a reduce-scatter over tokens. Each device adds
    and normalises its own tokens, which are gathered for the next part. It sends as many bytes as an all-reduce, but
    the norm, the addition and the kept activations are computed and stored for 1/P of the tokens on each device
    (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.2.2;
    TokenWeave, 2025, fuses the three).
    """

    def __init__(self, spec: Spec, mixer: str, *, rngs: nnx.Rngs):
        before, after = NORM_PLACES[spec.norm_place]
        self.mixer_norm = norms.make(spec, rngs=rngs) if before else same
        self.mixer = MIXERS[mixer](spec, rngs=rngs)  # ty: ignore
        self.mixer_out_norm = norms.make(spec, rngs=rngs) if after else same
        self.channel_norm = norms.make(spec, rngs=rngs) if before else same
        self.channel = CHANNELS[spec.channel](spec, rngs=rngs)
        self.channel_out_norm = norms.make(spec, rngs=rngs) if after else same
        self.partition, self.share = spec.partition, spec.sizes.branch * spec.residual_scale
        self.parallel = spec.parallel

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> Through:
        y, state = self._mixed(self._whole(self.mixer_norm(x)), context, state)
        y, first = context.at("mixer", self.joining(y, self.mixer_out_norm))
        read, x = x, x + y
        y, said = self.channel(self._whole(self.channel_norm(read if self.parallel else x)), context)
        y, second = context.at("channel", self.joining(y, self.channel_out_norm))
        x, third = context.at("residual", x + y)
        if taken := [name for name in SITES if name in said]:
            raise ValueError(f"a channel reports {taken[0]!r}, which names a site; report it under another name.")
        carried = {name: said.get(name, old).astype(old.dtype) for name, old in context.flow.items()}
        report = {name: value for name, value in said.items() if name not in carried}
        return Through(self.partition.constrain(x, STREAM), state, report | first | second | third, carried)

    def written(self, x: jax.Array, context: Context, state: Any) -> Any:
        """The mixer's state after tokens that take nothing else of this layer."""
        return self._mixed(self._whole(self.mixer_norm(x)), context, state)[1]

    def _mixed(self, x: jax.Array, context: Context, state: Any) -> tuple[jax.Array, Any]:
        if context.parts and not getattr(self.mixer, "joins", False):
            return together.apart(self.mixer, x, context, state)
        return self.mixer(x, context, state)

    def _whole(self, x: jax.Array) -> jax.Array:
        return self.partition.exchange(x, STREAM, TOKENS) if self.partition.cuts_stream else x

    def joining(self, y: jax.Array, norm: Callable[[jax.Array], jax.Array] = same) -> jax.Array:
        """A branch's output as it is added to the stream: cut as the stream is, through its norm, scaled."""
        y = norm(self.partition.exchange(y, TOKENS, STREAM) if self.partition.cuts_stream else y)
        return y if self.share == 1.0 else y * jnp.asarray(self.share, y.dtype)


class Period(nnx.Module):
    """The blocks of one repetition of the mixer pattern, e.g. one of "attention" or three of "lact,lact,attention"."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.names = tuple(f"{i}_{name}" for i, name in enumerate(spec.mixers))
        for name, mixer in zip(self.names, spec.mixers, strict=True):
            setattr(self, name, Block(spec.at(int(name.split("_")[0])), mixer, rngs=rngs))

    @property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name, in order of depth."""
        return {name: getattr(self, name) for name in self.names}

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> Through:
        """Arrays in `context.layers` have the blocks of this period in front."""
        state, report, flow = dict.fromkeys(self.names) if state is None else dict(state), {}, context.flow
        for i, (name, block) in enumerate(self.blocks.items()):
            layer = jax.tree.map(lambda values, i=i: values[i], context.layers)
            here = dataclasses.replace(context, layers=layer, flow=flow, prefill=context.prefill[i : i + 1])
            call = block if context.depth is None else functools.partial(context.depth.through, block)
            x, state[name], report[name], flow = call(x, here, state[name])
        return Through(x, state, report, flow)

    def start(self, x: jax.Array) -> dict[str, jax.Array]:
        """Zeros `[B, T, ...]` for every array that channels carry from layer to layer; see models/channels.py."""
        shapes: dict[str, tuple[int, ...]] = {}
        for block in self.blocks.values():
            for name, shape in getattr(block.channel, "carries", {}).items():
                if shapes.setdefault(name, tuple(shape)) != tuple(shape):
                    raise ValueError(f"flow {name!r} has the shapes {shapes[name]} and {tuple(shape)}; give it one.")
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return {name: jnp.zeros((*x.shape[:2], *shape), wide) for name, shape in shapes.items()}


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

    def __call__(self, x: jax.Array, context: Context, state: None = None) -> Pass:
        graphdef, params = nnx.split(self.period)

        def layer(stream: tuple, inputs: tuple) -> tuple[tuple, dict]:
            (x, flow), (params, layers) = stream, inputs
            here = dataclasses.replace(context, layers=layers, flow=flow)
            out = nnx.merge(graphdef, params)(x, here)
            return (out.x, out.flow), out.report

        if REMAT[self.remat] is not None:
            layer = jax.checkpoint(layer, policy=REMAT[self.remat])
        inputs = params, by_period(context.layers, self.repeats, len(self.period.names))
        (x, _), report = jax.lax.scan(layer, (x, self.period.start(x)), inputs, unroll=self.unroll)
        return Pass(x, None, reports.join(report))

    def unstack(self, layers: tuple | None = None) -> "Unstacked":
        """The same layers one by one; `layers` holds the parameters of each as plain dicts, if they are cut already."""
        graphdef, params = nnx.split(self.period)
        if layers is None:
            layers = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(self.repeats)]
        return Unstacked(tuple(nnx.merge(graphdef, layer) for layer in layers))


class Unstacked:
    """A stack of single layers, for decoding: each keeps its own state and nothing is copied."""

    def __init__(self, periods: tuple[Period, ...]):
        self.periods = periods

    def __call__(self, x: jax.Array, context: Context, state: tuple) -> Pass:
        first = self.periods[0]
        layers, flow = by_period(context.layers, len(self.periods), len(first.names)), first.start(x)
        flow |= context.depth.start(x) if context.depth is not None else {}
        after, said = [], []
        for i, (period, old) in enumerate(zip(self.periods, state, strict=True)):
            layer = jax.tree.map(lambda values, i=i: values[i], layers)
            mine = context.prefill[i * len(first.names) : (i + 1) * len(first.names)]
            x, new, report, flow = period(x, dataclasses.replace(context, layers=layer, flow=flow, prefill=mine), old)
            after.append(new)
            said.append(report)
        return Pass(x, tuple(after), reports.join(jax.tree.map(lambda *xs: jnp.stack(xs), *said)))

    @property
    def mixers(self) -> tuple[dict[str, Any], ...]:
        """The mixer that each entry of the decoding state belongs to, in the structure of `init_state`."""
        return tuple({name: block.mixer for name, block in period.blocks.items()} for period in self.periods)

    def patterns(self, prefill: Prefill) -> tuple:
        """Patterns of the heads of every layer, () of one without attention."""
        mixers = [block.mixer for period in self.periods for block in period.blocks.values()]
        return prefill.by_layer([mixer.N if getattr(mixer, "grows", False) else 0 for mixer in mixers])

    def init_state(self, batch: int, length: int, memory: Policy) -> tuple:
        """The empty decoding state of every layer; its memory is told which of the layers it is in."""
        count, made = sum(map(len, self.mixers)), []
        for i, layers in enumerate(self.mixers):
            told = {name: dataclasses.replace(memory, layers=count, layer=i * len(layers) + j)
                    for j, name in enumerate(layers)}  # fmt: skip
            made.append({name: mixer.init_state(batch, length, told[name]) for name, mixer in layers.items()})
        return tuple(made)


def by_period(layers: Mapping[str, Any], repeats: int, blocks: int) -> dict[str, Any]:
    """Values of each layer `[L, ...]` as `[repeats, blocks, ...]`."""
    L = repeats * blocks

    def cut(path: tuple, values: jax.Array) -> jax.Array:
        if not jnp.ndim(values) or values.shape[0] != L:
            raise ValueError(
                f"layers{jax.tree_util.keystr(path)} has shape {jnp.shape(values)}; give one of ({L}, ...), the layers "
                "in front."
            )
        return values.reshape(repeats, blocks, *values.shape[1:])

    return jax.tree_util.tree_map_with_path(cut, dict(layers))
