"""The knobs of the house with their sentences, for a reader."""

import dataclasses

from configs import knobs as house


@dataclasses.dataclass(frozen=True)
class Knob:
    """A knob, or a group of them.

    key: dotted; that of a group ends with a dot.
    default: as it is written; "" for a group.
    says: its sentence.
    """

    key: str
    default: str
    says: str


def knobs() -> list[Knob]:
    """Every knob and group of the house, in the order of their lines; a group stands before its first knob."""
    found, groups = [], set()
    for key, knob in house.KNOBS.items():
        group = key.rpartition(".")[0]
        if group and group not in groups:
            groups.add(group)
            found.append(Knob(f"{group}.", "", house.GROUPS.get(group, "")))
        found.append(Knob(key, repr(knob.default), knob.says))
    return found
