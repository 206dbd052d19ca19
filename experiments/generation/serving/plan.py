"""What one step of an engine or of the simulator does: the record that every scheduler makes."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One step, by the ids of requests: preempt, admit, read `chunks` of prompts, then a token for each of `decodes`.

    Attributes:
      preempt: running ones that leave their lanes.
      admit: waiting ones whose prompts are begun, and preempted ones that come back.
      chunks: id -> tokens of its prompt that are read now.
      decodes: running ones that get tokens; None: all.
      rounds: passes of the model for them.
      ends: stops before that where so many of them have ended.
      packed: prompts that are read whole share rows (`prepacking`).
    """

    preempt: tuple[int, ...] = ()
    admit: tuple[int, ...] = ()
    chunks: Mapping[int, int] = dataclasses.field(default_factory=dict)
    decodes: tuple[int, ...] | None = None
    rounds: int = 16
    ends: int = 2**31 - 1
    packed: bool = False

    @property
    def tokens(self) -> int:
        """sum of chunks + number of decodes: what the step reads, where `decodes` names the rows and rounds is 1."""
        return sum(self.chunks.values()) + len(self.decodes or ())
