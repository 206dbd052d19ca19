"""Where arrays live: a mesh from the config, and logical axes turned into shardings by the config's table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")


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
    return jax.make_mesh(
        tuple(shape.values()), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices
    )


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
            raise ValueError(
                f"sharding.{axis}: {size} does not divide over {ways} devices of {names}; "
                f"use a multiple of {ways}, or sharding.{axis}=()."
            )
        parts.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*parts)


def batch_sharding(config, mesh: Mesh) -> NamedSharding:
    """Sharding of `[B, T]` arrays of a batch."""
    rules = config.sharding.to_dict()
    cut = tuple(tuple(a for a in rules[name] if mesh.shape[a] > 1) or None for name in ("batch", "sequence"))
    return NamedSharding(mesh, PartitionSpec(*cut))


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
