"""What a model costs: parameters, FLOPs a token, bytes of memory; and what this machine can do."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.program import freezing, precision
from models import hamburger, kinds, segmented
from models.block import Period
from models.objectives import next_token
from models.parameters import MULTIPLIED, UNTRAINED, kernel_size
from models.rewired import sizes as rewired_sizes

COUNTED = {"segmented": segmented, "hamburger": hamburger}  # kinds of models that count their own FLOPs
MIXING = ("attention", "recurrent", "fast")  # kinds of what mixers do beyond their projections


def parameters(program: Any) -> dict[str, int]:
    """Trained parameters by what they are: `total`, `embedding` (with a free head), `non_embedding`."""
    sizes = jax.tree.map(lambda x: math.prod(x.shape), program.abstract["params"])
    pairs = list(zip(jax.tree.leaves(sizes), jax.tree.leaves(program.untrained), strict=True))
    total = sum(size for size, role in pairs if role not in UNTRAINED)
    embedding = sum(size for size, role in pairs if role == "embedding")
    return {"total": total, "embedding": embedding, "non_embedding": total - embedding}


def held(program: Any) -> int:
    """How many parameters `optimizer.freeze` holds; they are not among those that `parameters` counts."""
    leaves = zip(*map(jax.tree.leaves, (program.abstract["params"], program.fixed)), strict=True)
    return sum(x.size for x, fixed in leaves if fixed)


def flops_per_token(program: Any) -> dict[str, float]:
    """FLOPs of one training step per token: forward plus twice that backward; rematerialisation not counted.

    A multiply-add is 2. `matmul` counts the head once, and per copy of a token that the objective makes what channels
    say that is active in them for it (`Channel.flops`) and every other kernel once; `context` counts what mixers do
    beyond their projections, and is the sum of `attention` (over the keys that the mask lets a token see), `recurrent`
    (memories) and `fast` (weights that learn in the forward pass). What `optimizer.freeze` holds counts twice, not
    three times. Norms, activations and the optimizer are left out.
    Keys and values of Pattention count as any kernel: one product each, 2 P (D_in + D_out). Companions of the objective
    pass forward only.
    """
    sizes = jax.tree.map(lambda x: math.prod(x.shape), program.abstract["params"])
    leaves = zip(*map(jax.tree.leaves, (sizes, program.roles, program.fixed)), strict=True)
    multiplied = [(size, held) for size, role, held in leaves if role in MULTIPLIED]
    kernels = sum(size for size, _ in multiplied)
    spec, length = program.spec, program.config.data.length
    causal = program.objective.causal
    if own := COUNTED.get(spec.kind):
        forward = own.forward_flops(spec, length, causal)
        each, copies, width = forward["matmul"], 1, own.features_width(spec)
        parts = {kind: 3 * forward.get(kind, 0.0) for kind in MIXING}
    else:
        each, parts, copies, width = *_layers(program, kernels), program.objective.copies, spec.D
    predictions = getattr(program.objective, "predictions", 1)
    head = predictions * 2 * spec.V * width
    matmul = 3 * (copies * each + head)
    # What is held has no gradient of its own: two products of three.
    matmul -= copies * each * sum(size for size, held in multiplied if held) / max(kernels, 1)
    matmul -= head * bool(program.fixed["embedding" if spec.tied else "head"])
    if more := getattr(program.objective, "more_flops", None):  # Heads that are read otherwise than that.
        matmul += more(spec)
    if own := getattr(program.objective, "matmul_flops", None):  # A model that is frozen, and a head that learns.
        found = zip(*map(jax.tree.leaves, (sizes["heads"], program.roles["heads"])), strict=True)
        heads = sum(size for size, role in found if role in MULTIPLIED)
        matmul, parts = own(spec, each - 2 * heads, heads), {kind: flops / 3 for kind, flops in parts.items()}
    for companion in program.companions.values():
        flops = flops_per_token(dataclasses.replace(companion, objective=next_token, companions={}))
        matmul += flops["matmul"] / 3
        parts = {kind: parts[kind] + flops[kind] / 3 for kind in MIXING}
    context = sum(parts.values())
    return {"matmul": matmul, **parts, "context": context, "total": matmul + context}


def _layers(program: Any, kernels: int) -> tuple[float, dict[str, float]]:
    """Of a stack of layers: products of a token and pass, forward, without the head; three times what mixers do beyond
    their projections, in all copies of a token."""
    spec, length, goal = program.spec, program.config.data.length, program.objective
    blocks = nnx.eval_shape(lambda: Period(spec, rngs=nnx.Rngs(0))).blocks.values()
    repeats = spec.L // len(blocks)
    # With copies: a mask of their own over all of them, instead of each token seeing the row once.
    share = repeats * (goal.keys(length) / length if goal.copies > 1 else 1.0)
    parts = dict.fromkeys(MIXING, 0.0)
    for block in blocks:
        for kind, flops in block.mixer.context_flops(length, goal.causal).items():
            parts[kind] += 3 * share * flops
    each = 2 * kernels + repeats * sum(block.channel.flops() - 2 * kernel_size(block.channel) for block in blocks)
    return each, parts


def prompt_flops(program: Any, length: int) -> tuple[float, float]:
    """FLOPs a token of a prompt of `length` tokens that is only kept, and those of passing all layers.

    2 a number of a kernel, 4 N H a pair of tokens (all pairs) of each layer that attends. What is only kept passes all
    layers but the last, of a rewired model the first l, and behind them keys and values alone. Of attention alone.
    """
    spec = program.spec
    ((name, block),) = program.abstract["params"]["stack"]["period"].items()
    roles = program.roles["stack"]["period"][name]

    def numbers(tree: Any, role: Any) -> float:
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(role), strict=True)
        return sum(x.size / x.shape[0] for x, kind in pairs if kind in MULTIPLIED)

    keys = 2 * sum(numbers(block["mixer"][name], roles["mixer"][name]) for name in ("k", "v"))
    whole = 2 * numbers(block, roles) + 4 * spec.N * spec.H * length
    first, share = rewired_sizes(spec.options["swiftkv"], spec.L) if spec.kind == "swiftkv" else (spec.L - 1, 1)
    return first * whole + (spec.L - first) // share * keys, spec.L * whole


def state_bytes(program: Any) -> int:
    """Bytes of the decoding state of one sequence of `data.length` tokens, all layers: caches, memories, fast weights.

    Parameters are not in it, not even those that fast weights start from.
    """
    spec, length = program.spec, program.config.data.length
    state = nnx.eval_shape(lambda: kinds.make(spec, rngs=nnx.Rngs(0)).for_decoding().init_state(1, length))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def memory(program: Any) -> dict[str, int]:
    """Bytes per device: the state as it lies, gradients, companions, and an estimate of what the backward pass keeps.

    What `optimizer.freeze` holds has no gradient, and no moments in the state.

    The estimate counts, per token and layer, the inputs of every matmul and norm (about 2 F + 8 D + 2 N H values, one
    layer's worth under full rematerialisation plus D per layer) and the logits twice.
    """
    state = _bytes_per_device(program.abstract, program.shardings)
    params = program.abstract["params"]
    wide = params if program.config.optimizer.rounding == "nearest" else precision.widened(params)
    gradients = _bytes_per_device(*(freezing.trained(program.fixed, x) for x in (wide, program.shardings["params"])))
    spec, data = program.spec, program.config.data
    tokens = int(program.objective.copies * data.batch_size * data.length) // program.config.train.accumulation
    tokens //= math.prod(program.mesh.shape[a] for a in ("data", "fsdp", "context", "expert"))
    hidden = max(_hidden(program), spec.D)
    layer = tokens * (2 * hidden + 8 * spec.D + 2 * spec.N * spec.H) * spec.dtype.itemsize
    kept = layer * spec.L if spec.remat == "none" else layer + tokens * spec.D * spec.L * spec.dtype.itemsize
    logits = 2 * 4 * min(tokens * spec.V, 1 << 25)
    inputs = tokens * spec.D * spec.L * spec.dtype.itemsize  # Of the layers: what no rematerialisation does without.
    beside = sum(
        _bytes_per_device(each.abstract["params"], each.shardings["params"]) for each in program.companions.values()
    )
    return {"state": state, "gradients": gradients, "companions": beside, "activations": kept, "logits": logits,
            "inputs": inputs, "total": state + gradients + beside + kept + logits}  # fmt: skip


def _hidden(program: Any) -> int:
    """The widest hidden width of a token; of experts it has several."""
    several = program.spec.options["moe"]["k"]
    axes = jax.tree.leaves(program.axes, is_leaf=lambda a: isinstance(a, tuple))
    shapes = [x.shape for x in jax.tree.leaves(program.abstract["params"])]
    widths = [
        s[a.index("hidden")] * (several if "experts" in a else 1)
        for a, s in zip(axes, shapes, strict=True) if "hidden" in a
    ]  # fmt: skip
    return max(widths, default=0)


def _bytes_per_device(abstract: Any, shardings: Any) -> int:
    leaves = zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)


@functools.cache
def matmul_rate(dtype: Any = jnp.float32, n: int = 0, seconds: float = 0.15) -> float:
    """Measured FLOP/s of a square matmul on one device (all local fake CPU devices share one): the MFU's ceiling.

    Once a process: what is asked again is what was measured.
    """
    device = jax.local_devices()[0]
    n = n or (1024 if device.platform == "cpu" else 8192)
    x = jax.device_put(np.random.default_rng(0).standard_normal((n, n)).astype(dtype), device)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


__all__ = ["MIXING", "flops_per_token", "matmul_rate", "memory", "parameters", "prompt_flops", "state_bytes"]
