"""How a model lies on a mesh, as far as its own code must know: logical axes to mesh axes, and regions run per device.

XLA partitions matmuls by itself. It cannot partition kernels and loops over tiles, so these run inside `Partition.run`,
where every device sees only its own rows, tokens and heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import transfers

Axes = Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh (None: one device) and pairs of a logical axis (`batch`, `heads`, ...) and the mesh axes that cut it.

    `stream`: logical axis of the tokens of the residual stream: cut over the mesh axes of `sequence` plus those of
    `sharding.stream`.
    `schedule`: name in `kernels.context_attention.SCHEDULES` of how attention crosses the cuts of `sequence`. The
    tokens of a batch are then in the order of that schedule. "" where the sequence is not cut.
    """

    mesh: Mesh | None = None
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    schedule: str = ""

    @property
    def trivial(self) -> bool:
        """Whether everything lies on one device."""
        return self.mesh is None or self.mesh.size == 1

    def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
        """Mesh axes, larger than 1, that cut the logical `axis`."""
        return tuple(name for name in dict(self.rules).get(axis, ()) if self.mesh.shape[name] > 1)

    @property
    def cuts_stream(self) -> bool:
        """Whether the tokens of the residual stream are cut over more devices than those in mixers and channels."""
        return not self.trivial and self.mesh_axes("stream") != self.mesh_axes("sequence")

    def ways(self, axis: str | None) -> int:
        """Parts that the logical `axis` is cut into."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[name] for name in self.mesh_axes(axis))

    def without(self, *axes: str) -> "Partition":
        """The same mesh, with these logical axes whole on every device."""
        axes = (*axes, "stream") if "sequence" in axes else axes
        rules = tuple(rule for rule in self.rules if rule[0] not in axes)
        return dataclasses.replace(self, rules=rules, schedule="" if "sequence" in axes else self.schedule)

    def spec(self, axes: Axes) -> PartitionSpec:
        """PartitionSpec of an array with these logical axes."""
        return PartitionSpec(*(self.mesh_axes(axis) or None for axis in axes))

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """`x` laid out as its logical axes say."""
        if self.trivial:
            return x
        uneven = tuple(a for a in ("batch", "stream") if a in axes and x.shape[list(axes).index(a)] % self.ways(a))
        cut = self.without(*uneven)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, cut.spec(axes)))

    def exchange(self, x: jax.Array, before: Axes, after: Axes) -> jax.Array:
        """`x` moved from the layout of the logical axes `before` to that of `after`; its gradient moves back.

        Partial sums are then reduce-scattered in both directions. (The gradient of `constrain` has the layout of its
        result: here it would be summed on every device first.)
        """
        return _exchange(self, tuple(before), tuple(after), x)

    @staticmethod
    def rows(ndim: int) -> Axes:
        """Logical axes of tokens `[B, T, D]`, or of rows `[B, ..., D]` where there are not three axes."""
        return ("batch", *("sequence",) * (ndim == 3), *(None,) * (ndim - 1 - (ndim == 3)))

    def gather(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Inside `run`: `x` gathered along its logical `axes`, e.g. a weight of which every device holds a part.

        A gather inside `run` has a reduce-scatter as its gradient: each device gets the sum of its own part, at half
        the bytes of the whole sum on every device. On a TPU both are transfers that run beside kernels.
        """
        for dimension, axis in enumerate(axes):
            names = () if self.trivial else self.mesh_axes(axis)
            if orders := self._beside(names):
                for name in reversed(names):
                    x = transfers.all_gather(x, name, dimension, orders[name])
            elif names:
                x = jax.lax.all_gather(x, names, axis=dimension, tiled=True)
        return x

    def sends(self, axes: Axes) -> bool:
        """Whether `gather` gathers the matrix of a plain product, whose logical axes these are, and not XLA.

        On TPUs of more than `transfers.MOST` chips that data and fsdp alone cut. XLA sends more bytes there, and sums
        some gradients whole on every device while everything waits (docs/machines.md).
        """
        if self.trivial or self.mesh.size <= transfers.MOST:
            return False
        cut = {name for name, size in self.mesh.shape.items() if size > 1}
        names = {name for axis in axes for name in self.mesh_axes(axis)}
        return names == {"fsdp"} and cut <= {"data", "fsdp"} and bool(self._beside(("fsdp",)))

    def _beside(self, names: Sequence[str]) -> dict[str, tuple[transfers.Bits, ...]]:
        """The orders of exchange over these mesh axes that run beside other work; {} where one of them has none."""
        if not names or self.mesh.devices.flat[0].platform != "tpu":
            return {}
        orders = {name: transfers.orders(self.mesh, name) for name in names}
        return orders if all(orders.values()) else {}

    def run(self, fn: Callable, args: Sequence[Any], axes: Sequence[Any], out_axes: Any) -> Any:
        """`fn(*args)` on every device's own part.

        `axes` has, for each argument, its logical axes, or a pytree of them in the argument's structure; `out_axes`
        likewise for what `fn` returns. Sums over a cut axis are `fn`'s business (`jax.lax.psum`). A batch that does not
        divide, such as one prompt on eight devices, is computed by every device.
        """
        if self.trivial:
            return fn(*args)
        is_axes = lambda leaf: isinstance(leaf, tuple) and all(a is None or isinstance(a, str) for a in leaf)  # noqa: E731
        fits = lambda names, x: self._even(x, names)  # noqa: E731
        even = all(jax.tree.leaves(jax.tree.map(fits, tuple(axes), tuple(args), is_leaf=is_axes)))
        cut = self if even else self.without("batch")
        specs = jax.tree.map(cut.spec, (tuple(axes), out_axes), is_leaf=is_axes)
        return jax.shard_map(fn, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)(*args)

    def _even(self, x: jax.Array, axes: Axes) -> bool:
        """Whether the batch of `x` divides over the devices that share it."""
        return "batch" not in axes or x.shape[list(axes).index("batch")] % self.ways("batch") == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _exchange(partition: Partition, before: Axes, after: Axes, x: jax.Array) -> jax.Array:
    return partition.constrain(x, after)


def _exchange_forward(partition, before, after, x):
    return partition.constrain(x, after), None


def _exchange_backward(partition, before, after, _, gradient):
    return (partition.constrain(gradient, before),)


_exchange.defvjp(_exchange_forward, _exchange_backward)
