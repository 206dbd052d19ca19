"""Parameters as decoding reads them: layer by layer, on a CPU without a second copy.

A stack's parameter is `[L, ...]`, one buffer; decoding takes L arrays, because a scan would copy every layer's cache.
On a CPU they are views of that buffer. A buffer that is looked at is not given away: a step of training that is to have
it while somebody decodes from it takes room of its own. The views are of the shards' data and not of the array itself,
which would keep the first look at it for good: its buffer could never again be given away.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models.lm import STACKED, unstack


def cut(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as decoding reads them: those of every layer by themselves, `layers`, and the rest."""
    stack = params["stack"]
    rest = {name: value for name, value in params.items() if name != "stack"}
    if beside := {name: value for name, value in stack.items() if name not in STACKED}:
        rest["stack"] = beside
    stacked = [jax.tree.flatten(stack[name]) for name in STACKED if name in stack]
    if any(device.platform != "cpu" for leaves, _ in stacked for leaf in leaves for device in leaf.devices()):
        return {"rest": rest, "layers": jax.jit(unstack)(params)}
    cuts = [(tree, zip(*map(views, leaves), strict=True)) for leaves, tree in stacked]
    return {"rest": rest, "layers": tuple(jax.tree.unflatten(tree, layer) for tree, made in cuts for layer in made)}


def views(stack: jax.Array) -> list[jax.Array]:
    """The arrays `stack[i]` of `[L, ...]` on CPU devices, in the buffers of the stack where they are aligned."""
    sharding = stack.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    held = [(shard.device, np.asarray(shard.data)) for shard in stack.addressable_shards]
    return [
        jax.make_array_from_single_device_arrays(
            stack.shape[1:], sharding, [jax.device_put(data[i], device, may_alias=True) for device, data in held]
        )
        for i in range(stack.shape[0])
    ]


def whole(weights: Mapping[str, Any]) -> dict[str, Any]:
    """`cut`, undone, inside a trace. The stack is for the model's structure: decoding reads the layers.

    Layers of the parts of a stack differ in structure, and stand part by part.
    """
    parts = [list(layers) for _, layers in itertools.groupby(weights["layers"], jax.tree.structure)]
    stacked = {name: jax.tree.map(lambda *xs: jnp.stack(xs), *part) for name, part in zip(STACKED, parts, strict=False)}
    return {**weights["rest"], "stack": {**weights["rest"].get("stack", {}), **stacked}}
