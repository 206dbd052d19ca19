"""What a part may know when it says which of its options do not go together with the rest of a config."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Facts:
    """Groups of the config as plain dicts, and the name of the objective.

    `problems(options, facts)` of a part is a static method that yields sentences about options that do not fit. A
    sentence names the key with its value, what it breaks, and a value that works. Every value has its own type and lies
    in its own range when `problems` is called.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    mesh: Mapping[str, int]  # devices along each axis; -1 = all that are left
    sharding: Mapping[str, tuple[str, ...]]
    objective: str

    @property
    def head_width(self) -> int:
        """H; N x H is the width of all heads together."""
        return self.model["head_dim"] or self.model["width"] // self.model["num_heads"]

    def ways(self, axis: str) -> int:
        """Devices that share a logical axis of `sharding`, as far as the config says."""
        return math.prod(max(1, self.mesh[name]) for name in self.sharding[axis])


def span_problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """Times of an objective that end before they begin: `t_min` above `t_max`."""
    name, first, last = facts.objective, options["t_min"], options["t_max"]
    if first > last:
        yield f"{name}.t_min={first} lies above {name}.t_max={last}; use e.g. {name}.t_min=0.001."


def listed(names: str) -> tuple[str, ...]:
    """The names of a comma list, as in model.mixer and model.channel."""
    return tuple(name.strip() for name in names.split(","))


def nearest_multiple(value: int, of: int) -> int:
    """The positive multiple of `of` that lies nearest to `value`."""
    return max(of, round(value / of) * of)


def largest_divisor(value: int, most: int) -> int:
    """The largest divisor of `value` up to `most`, both at least 1; quick for any value that a config may hold."""
    low = [k for k in range(1, math.isqrt(value) + 1) if value % k == 0]
    return max(k for k in (*low, *(value // k for k in low)) if k <= most)


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and in their place what `changes` say, group by group."""
    groups = {k: merged(options.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in changes.items()}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in options.items()} | groups
