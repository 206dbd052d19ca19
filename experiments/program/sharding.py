"""Where arrays live: a mesh from the config, and logical axes turned into shardings by the config's table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.program import torus
from kernels import context_attention
from kernels.masks import Mask
from models.mixers import MIXERS

AXES = ("data", "fsdp", "tensor", "context", "expert")


def mesh_shape(mesh: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Devices along each axis; -1 takes all that are left. ValueError names a mesh that fits."""
    sizes = {axis: mesh[axis] for axis in AXES}
    free = [axis for axis in AXES if sizes[axis] == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    wrong = [axis for axis in AXES if sizes[axis] != -1 and sizes[axis] < 1]
    if wrong:
        raise ValueError(f"mesh.{wrong[0]}={sizes[wrong[0]]} must be a positive count, or -1 for all devices left.")
    if len(free) > 1:
        raise ValueError(f"mesh.{free[1]}=-1: only one axis can take what is left; set mesh.{free[1]}=1.")
    if num_devices % fixed or (not free and fixed != num_devices):
        shown = " x ".join(f"mesh.{axis}={sizes[axis]}" for axis in AXES if sizes[axis] != 1) or "mesh.data=1"
        raise ValueError(
            f"{shown} needs {'a multiple of ' if free else ''}{fixed} devices and {num_devices} are here; "
            f"use e.g. mesh.data=-1 with the other axes 1."
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


def make_mesh(config, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that `config.mesh` describes over `devices` (default: all)."""
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(config.mesh, len(devices))
    if devices[0].platform == "cpu":  # Fake devices have no topology to respect.
        return Mesh(np.asarray(devices).reshape(tuple(shape.values())), AXES)
    if (boxes := torus.boxes(devices, shape)) is not None:
        return Mesh(boxes, AXES)
    # A mesh axis of 32 on a torus of 4 x 4 x 4 takes one and a half of its sides.
    return Mesh(create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True), AXES)


def spec(axes: Sequence[str | None], shape: Sequence[int], rules: Mapping[str, Sequence[str]], mesh: Mesh):
    """PartitionSpec of an array whose dimensions carry logical `axes`.

    Raises ValueError when one mesh axis would cut two dimensions, or a dimension does not divide.
    """
    parts, used = [], {}
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in rules.get(axis, ()) if mesh.shape[name] > 1) if axis else ()
        for name in names:
            if name in used:
                raise ValueError(
                    f"sharding.{axis}: mesh axis {name!r} already cuts {used[name]!r} of the same array {tuple(axes)}; "
                    f"set sharding.{axis}=()."
                )
            used[name] = axis
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            multiple = f"model.vocab_multiple={ways}" if axis == "vocab" else f"a multiple of {ways}"
            raise ValueError(
                f"sharding.{axis}: {size} does not divide over {ways} devices of {names}; "
                f"use {multiple}, or sharding.{axis}=()."
            )
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def rules(config) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each logical axis with the mesh axes that cut it; the stream is cut where sequences are, rows where experts."""
    table = {axis: tuple(names) for axis, names in config.sharding.to_dict().items()}
    return tuple((table | {"batch": rows(config), "stream": table["sequence"] + table["stream"]}).items())


def rows(config) -> tuple[str, ...]:
    """The mesh axes that cut the rows of a batch: devices with different experts hold different rows, too.

    Where they share sequences, heads or the vocabulary they do so with the same rows.
    """
    shared = {*config.sharding.sequence, *config.sharding.heads, *config.sharding.vocab}
    return tuple(dict.fromkeys((*config.sharding.batch, *(a for a in config.sharding.experts if a not in shared))))


def batch_sharding(config, mesh: Mesh) -> NamedSharding:
    """Sharding of `[B, T]` arrays of a batch."""
    cut = (tuple(a for a in names if mesh.shape[a] > 1) or None for names in (rows(config), config.sharding.sequence))
    return NamedSharding(mesh, PartitionSpec(*cut))


def own_rows(config, mesh: Mesh) -> tuple[int, int]:
    """`(i, n)`: this process's devices need the i-th of n equal parts of the rows of a batch.

    Processes whose devices share sequences or parameters only read the same part. Where the mesh deals the rows of one
    process out unevenly, it reads all of them: (0, 1).
    """
    count = math.prod(mesh.shape[name] for name in rows(config))
    cuts = batch_sharding(config, mesh).addressable_devices_indices_map((count, mesh.size))
    mine = sorted({index[0].start or 0 for index in cuts.values()})
    if mine != list(range(mine[0], mine[0] + len(mine))) or count % len(mine) or mine[0] % len(mine):
        return 0, 1
    return mine[0] // len(mine), count // len(mine)


def schedule(config, shape: Mapping[str, int], mask: Mask) -> str:
    """How attention under `mask` crosses the devices that share a sequence, on a mesh of this shape.

    `parallel.schedule`, "auto" decided: by bytes sent, among those whose order of tokens every mixer can follow. ""
    where every device has whole sequences.
    """
    P = math.prod(shape[name] for name in config.sharding.sequence)
    if P == 1 or config.parallel.schedule != "auto":
        return config.parallel.schedule if P > 1 else ""
    chosen = context_attention.choose(*attention_shapes(config), mask, P, config.model.dtype)
    fits = layouts(config)
    if not fits or context_attention.exchange_of(chosen, P).layout.kind in fits:
        return chosen
    return RING[fits[0]]


# For each layout of tokens, the ring schedule that works with it.
RING = {"contiguous": "ring", "zigzag": "zigzag", "striped": "striped"}


def layouts(config) -> tuple[str, ...]:
    """The orders of tokens that every mixer of the model can follow where devices share a sequence."""
    named = [
        getattr(MIXERS[part.strip()], "layouts", context_attention.LAYOUTS) for part in config.model.mixer.split(",")
    ]
    return tuple(kind for kind in context_attention.LAYOUTS if all(kind in each for each in named))


def attention_shapes(config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of q `[B, T, N, H]` and k `[B, T, K, H]` of a whole batch."""
    model, data = config.model, config.data
    N, H = model.num_heads, model.head_dim or model.width // model.num_heads
    return tuple((data.batch_size, data.length, heads, H) for heads in (N, model.num_kv_heads or N))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(abstract: Any, axes: Any, config, mesh: Mesh) -> Any:
    """Shardings of parameters from their abstract values and logical axes (pytrees of one structure)."""
    rules = config.sharding.to_dict()
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    leaves, treedef = jax.tree.flatten(abstract)
    names = jax.tree.leaves(axes, is_leaf=is_axes)
    return treedef.unflatten(
        NamedSharding(mesh, spec(a, x.shape, rules, mesh)) for x, a in zip(leaves, names, strict=True)
    )


def like_parameters(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a state built from parameters (optimizer moments, averages).

    A leaf whose path ends with a parameter's path and that has its shape lies as the parameter does; the rest is
    replicated.
    """
    by_path = {
        tuple(map(str, path)): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path, leaf):
        keys = tuple(map(str, path))
        for start in range(len(keys)):
            shape, sharding = by_path.get(keys[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)
