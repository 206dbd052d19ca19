"""A comparison of the bench: candidates that compute the same thing, how to check them, and their counted costs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row of the bench. `candidates` are zero-argument calls that return device arrays.

    baseline: the candidate that ratios refer to.
    check: returns "" when every candidate is right, else the error. No time is printed for a row that is wrong.
    flops, bytes: counted from the problem, not measured.
    temporaries: the compiler's bytes per candidate.
    work: a count and its unit, e.g. (4096, "tokens").
    again: of candidates that are ours, what compiles them anew, under the choices of the moment (`kernels.choices`).
    counted: the name of a quantity and its value for each candidate, e.g. score entries: from a plan, not measured.
    Where candidates are not the same problem, `flops` and the count of `work` are mappings by candidate.
    """

    name: str
    candidates: Mapping[str, Callable[[], Any]]
    baseline: str
    check: Callable[[], str] = lambda: ""
    flops: float | Mapping[str, float] = 0.0
    bytes: float = 0.0
    work: tuple[float | Mapping[str, float], str] = (0.0, "")
    temporaries: Mapping[str, int] = dataclasses.field(default_factory=dict)
    counted: tuple[str, Mapping[str, int]] = ("", {})
    again: Mapping[str, Callable[[], Callable[[], Any]]] = dataclasses.field(default_factory=dict)
    rounds: int = 5
    calls: int = 1

    def of(self, counted: float | Mapping[str, float], candidate: str) -> float:
        """The count of one candidate."""
        return counted[candidate] if isinstance(counted, Mapping) else counted


@dataclasses.dataclass(frozen=True)
class Planned:
    """A comparison that is not built yet: building compiles, so only what the filter keeps is built."""

    name: str
    build: Callable[[], Comparison]
    ahead_of_time: Callable[[str], dict[str, Any]] | None = None  # TPU generation -> what its compiler says
