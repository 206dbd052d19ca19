"""LiB, "less is better": an ordered lexicon that grows by reading and shrinks by forgetting (Yang 2022, 2024).

The lexicon is a list; a rank near 0 is a unit that proved itself. Text is read from left to right by longest match.
The steps and their constants are those of the authors' released code, with its random numbers handed over, so that a
trace can be compared unit by unit. Skip-grams, off by default there, are left out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

LIFE = 10  # articles that a unit on probation may stay unused
LONGEST = 12  # symbols of a unit
TAKEN = 0.25  # probability that a pair of neighbours is a candidate
FORGOTTEN = 0.0001  # share of the list, its end, that goes on probation after an article
RATE = 0.2  # share of its rank by which a unit moves
GAP = 2  # symbols of the longest unknown run that may become a unit


class Lexicon:
    """Units in the order of their rank. Text is `str` or `bytes`; a unit is a slice of it."""

    def __init__(self, units: Iterable = ()):
        self.units = list(units)
        self._known = set(self.units)
        if len(self._known) != len(self.units):
            raise ValueError("units has one twice; give each unit once.")

    def __contains__(self, unit: str | bytes) -> bool:
        return unit in self._known

    def __len__(self) -> int:
        return len(self.units)

    def rank(self, unit: str | bytes) -> int:
        """Place of `unit` in the list."""
        return self.units.index(unit)

    def append(self, unit: str | bytes) -> None:
        """Adds `unit` at the end, the worst rank."""
        self.units.append(unit)
        self._known.add(unit)

    def matches(self, text: str | bytes) -> tuple:
        """(second longest, longest) unit at the start of `text`; empty ones where there are none."""
        second = longest = text[:0]
        for end in range(1, len(text) + 1):
            if text[:end] in self._known:
                second, longest = longest, text[:end]
        return second, longest

    def match(self, text: str | bytes):
        """The longest unit at the start of `text`, or nothing."""
        return self.matches(text)[1]

    def remove(self, units: Iterable) -> None:
        """Takes units out of the list."""
        gone = set(units) & self._known
        self._known -= gone
        self.units = [unit for unit in self.units if unit not in gone]

    def move(self, moves: Iterable[tuple], rate: float = RATE) -> None:
        """Moves each (unit, sign) by sign * (floor(rate * rank) + 1): -1 to the front, +1 to the end and out of it.

        Ranks are those at the time of the move. The unit of rank 0 stays, and so does one that is not in the list.
        """
        for unit, sign in moves:
            if unit not in self._known:
                continue
            rank = self.rank(unit)
            if rank == 0:
                continue
            del self.units[rank]
            to = rank + sign * (int(rank * rate) + 1)
            if to > len(self.units):
                self._known.remove(unit)
            else:
                self.units.insert(to, unit)


@dataclasses.dataclass
class Memory:
    """What lives on from article to article: the lexicon, and the units on probation with the articles left to them."""

    lexicon: Lexicon
    probation: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def of_symbols(cls, symbols: Sequence) -> "Memory":
        """A lexicon of single symbols, all on probation, as the released code begins."""
        return cls(Lexicon(symbols), dict.fromkeys(symbols, LIFE))


@dataclasses.dataclass
class _Trial:
    """A unit under test: what is read with it, and what would be read without it from `begin` on."""

    end: int  # where the reading without it has come to
    unknown: int  # symbols of that reading that no unit covers
    count: int  # its units and unknown symbols
    read: list  # units with it; empty for an unknown symbol
    instead: list  # units without it


def read_article(memory: Memory, article: Sequence, draw: Callable[[], float]) -> list[list]:
    """Reads sentences, learns and forgets; the units of each sentence, unknown symbols one by one.

    Args:
      memory: changed in place.
      article: sentences, each `str` or `bytes`.
      draw: gives the next uniform number in 0..1; it is asked where a unit of at most LONGEST - 2 symbols is read.

    Source: Yang 2024, arXiv:2403.00417, and the released `reading`.
    """
    moves: list[tuple] = []
    candidates: set = set()
    sentences = [_read_sentence(memory, sentence, draw, moves, candidates) for sentence in article]
    _forget(memory, moves)
    return sentences


def _read_sentence(memory: Memory, text: str | bytes, draw: Callable[[], float], moves: list, candidates: set) -> list:
    lexicon, trials, units = memory.lexicon, {}, []
    last, known, at = text[:0], False, 0
    while at < len(text):
        _settle(memory, trials, text, at, moves)
        second, unit = lexicon.matches(text[at : at + LONGEST])
        for trial in trials.values():
            trial.read.append(unit)
        if not unit:
            last = (text[:0] if known else last) + text[at : at + 1]
            known = False
            units.append(text[at : at + 1])
            at += 1
            continue
        # The released code compares 2, the length of its pair (unit, known), plus the unit with LONGEST.
        if 2 + len(unit) <= LONGEST and draw() < TAKEN:
            if not known:
                _consider(lexicon, candidates, last if 0 < len(last) <= GAP else None)
            elif len(last + unit) <= LONGEST:
                _consider(lexicon, candidates, last + unit)
        if len(unit) > 1 and second:
            trials[unit] = _Trial(at + len(second), 0, 1, [unit], [second])
        else:
            memory.probation.pop(unit, None)
        units.append(unit)
        last, known = unit, True
        at += len(unit)
    return units


def _consider(lexicon: Lexicon, candidates: set, unit) -> None:
    """The second sighting of a candidate within an article makes it a unit."""
    if unit is None or unit in lexicon:
        return
    if unit in candidates:
        candidates.remove(unit)
        lexicon.append(unit)
    else:
        candidates.add(unit)


def _settle(memory: Memory, trials: dict, text: str | bytes, at: int, moves: list) -> None:
    """Ends the trials whose two readings meet at `at`."""
    lexicon = memory.lexicon
    for unit, trial in list(trials.items()):
        while trial.end < at:
            following = lexicon.match(text[trial.end : trial.end + LONGEST])
            trial.instead.append(following)
            trial.end += len(following) or 1
            trial.unknown += not following
            trial.count += 1
        if trial.end > at:
            continue
        del trials[unit]
        unknown = sum(not part for part in trial.read)
        count = len(trial.read) - unknown
        ranks = [sum(lexicon.rank(p) for p in parts if p in lexicon) for parts in (trial.read, trial.instead)]
        fewer = count > trial.count or (count == trial.count and ranks[0] > ranks[1])
        if unknown > trial.unknown or (unknown == trial.unknown and fewer):
            moves += [(unit, 1), (lexicon.match(unit[:-1]), -1)]
        else:
            moves.append((unit, -1))
            memory.probation.pop(unit, None)


def _forget(memory: Memory, moves: list) -> None:
    """Takes out what its probation has run out for, moves what was tried, and puts the end of the list on probation."""
    over = [unit for unit, life in memory.probation.items() if life <= 1]
    memory.probation = {unit: life - 1 for unit, life in memory.probation.items() if life > 1}
    memory.lexicon.remove(over)
    gone = set(over)
    memory.lexicon.move([move for move in moves if move[0] not in gone])
    units = memory.lexicon.units
    for unit in units[int((1 - FORGOTTEN) * len(units)) :]:
        memory.probation.setdefault(unit, LIFE)


def segment(lexicon: Lexicon, text: str | bytes, longest: int = 10) -> list:
    """Units of `text` by longest match of at most `longest` symbols, unknown symbols one by one; nothing is learned."""
    units, at = [], 0
    while at < len(text):
        unit = lexicon.match(text[at : at + longest]) or text[at : at + 1]
        units.append(unit)
        at += len(unit)
    return units
