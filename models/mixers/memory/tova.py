"""Memory `tova`: what the newest query looked at, the mean over all heads (Oren et al. 2024, arXiv:2401.06104)."""

import dataclasses
from typing import ClassVar

from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, last, policy


@policy
@dataclasses.dataclass(frozen=True)
class Tova(Kept):
    """See the module's docstring."""

    name: ClassVar[str] = "tova"
    shared: ClassVar[bool] = True

    def rate(self, row: Row) -> Rated:
        return Rated.of(row, scores.tova(last(row, row.p))[None])


PARTS = {"tova": Tova}
