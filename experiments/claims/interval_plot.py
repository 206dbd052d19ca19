"""The figure of a claim: a row for each statement, its difference with the interval beside zero and the effect."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims import figure
from experiments.report import page

_LEFT, _RIGHT, _ROW, _LINE = 8, 392, 84, 15
_CHARACTERS = 62  # of a statement on one line


def ends(row: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(mean, low, high) of a row that has them, all finite."""
    numbers = row.get("numbers", {})
    found = [numbers.get(key) for key in ("mean", "low", "high")]
    if any(not isinstance(end, int | float) or not math.isfinite(end) for end in found):
        return None
    return tuple(map(float, found))


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of all rows that have an interval, "" where none has. Every row has a scale of its own about zero."""
    shown = [(row, found) for row in rows if (found := ends(row))]
    if not shown:
        return ""
    parts = [part for k, (row, found) in enumerate(shown) for part in _row(row, found, 4 + k * _ROW)]
    return figure.svg(_ROW * len(shown) + 8, "Differences with their intervals", parts)


def _row(row: Mapping[str, Any], found: tuple[float, float, float], top: int) -> list[str]:
    mean, low, high = found
    effect = row["numbers"].get("effect") or 0.0
    span = 1.15 * max(abs(low), abs(high), abs(mean), effect) or 1.0
    middle = top + 2 * _LINE + 14

    def x(value: float) -> float:
        return round((_LEFT + _RIGHT) / 2 + value / span * (_RIGHT - _LEFT) / 2, 1)

    lines = textwrap.wrap(row["statement"], _CHARACTERS)
    if len(lines) > 2:
        lines = [lines[0], f"{lines[1][: _CHARACTERS - 1]}…"]
    made = [
        f'<text x="{_LEFT}" y="{top + 12 + i * _LINE}" fill="currentColor">{page.escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    if effect:
        wide = x(effect) - x(-effect)
        made.append(f'<rect x="{x(-effect)}" y="{middle - 9}" width="{wide:.1f}" height="18" fill="#88888833"/>')
    made += [
        f'<line x1="{x(0)}" x2="{x(0)}" y1="{middle - 9}" y2="{middle + 9}" stroke="#888888"/>',
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}" stroke="{figure.BLUE}" stroke-width="2"/>',
        f'<circle cx="{x(mean)}" cy="{middle}" r="4" fill="{figure.BLUE}"/>',
        f'<text x="{_LEFT}" y="{middle + 24}" fill="{figure.GREY}">'
        f"{page.escape(row['verdict'])}: {mean:.3g} [{low:.3g}, {high:.3g}]</text>",
    ]
    return made
