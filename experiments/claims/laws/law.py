"""What a law gives when it is tried, and how its docstring is read."""

import dataclasses
import inspect
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Law:
    """The result of trying a law.

    error: the largest over all `cases`.
    tolerance: a bound on the error by rounding; the law's docstring derives it."""

    error: float
    tolerance: float
    cases: int

    @property
    def holds(self) -> bool:
        """Whether the error is at most the tolerance; False if it is NaN."""
        return self.cases > 0 and self.error <= self.tolerance


def stated(law: Callable[[], Law]) -> tuple[str, str]:
    """(the law in one sentence, where it is from): the first paragraph of the docstring, and the one of "Source:".

    Errors: ValueError where one of them is missing.
    """
    parts = [" ".join(part.split()) for part in (inspect.getdoc(law) or "").split("\n\n")]
    sources = [part.removeprefix("Source: ").rstrip(".") for part in parts if part.startswith("Source: ")]
    if not parts[0] or len(sources) != 1 or parts[0].startswith("Source: "):
        raise ValueError(
            f"the law {law.__name__} must state itself first, and its source in a paragraph 'Source: ...'."
        )
    return parts[0].rstrip("."), sources[0]
