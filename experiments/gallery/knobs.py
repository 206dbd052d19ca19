"""The knobs of the house with their sentences, for a reader."""

import dataclasses

from configs import knobs as house


@dataclasses.dataclass(frozen=True)
class Knob:
    """`key`: dotted. `default`: as it is written. `says`: its sentence. A group has the default "" and ends with a
    dot."""

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
