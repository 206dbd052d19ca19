"""The second figure of a claim whose rows keep curves: held-out bits per byte over epochs or FLOPs (log), by arm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims import figure
from experiments.report import page

_HEIGHT = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 392, 12, 196
NAMES = {"epochs": "epochs", "flops": "FLOPs"}
_COLOURS = (figure.BLUE, "#b3470f", "#2e7d32", "#6a3d9a")


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the first row's `curves`, {arm: {"epochs" or "flops": [n], "bits_per_byte": [seeds][n]}}: means over
    seeds, and bands from the lowest to the highest seed; "" where no row keeps curves."""
    kept = [row["numbers"]["curves"] for row in rows if row.get("numbers", {}).get("curves")]
    if not kept:
        return ""
    arms = kept[0]
    over = "flops" if all("flops" in arm for arm in arms.values()) else "epochs"
    places = [place for arm in arms.values() for place in arm[over]]
    least, most = min(places), max(places)
    bits = [value for arm in arms.values() for seed in arm["bits_per_byte"] for value in seed]
    low, high = min(bits), max(bits)
    room = 0.05 * (high - low) or 0.1
    low, high = low - room, high + room

    def at(place: float, value: float) -> str:
        x = _LEFT + math.log(place / least) / (math.log(most / least) or 1) * (_RIGHT - _LEFT)
        y = _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)
        return f"{x:.1f},{y:.1f}"

    parts = _axes(least, most, low, high, over)
    for k, (name, arm) in enumerate(arms.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        points = list(zip(arm[over], zip(*arm["bits_per_byte"], strict=True), strict=True))  # (place, by seed)
        band = [at(place, max(seeds)) for place, seeds in points]
        band += [at(place, min(seeds)) for place, seeds in reversed(points)]
        line = [at(place, sum(seeds) / len(seeds)) for place, seeds in points]
        left = _LEFT + k % 2 * (_RIGHT - _LEFT) / 2
        down = _BOTTOM + 36 + k // 2 * 16
        parts += [
            f'<polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.2"/>',
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<line x1="{left:g}" x2="{left + 18:g}" y1="{down - 4}" y2="{down - 4}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<text x="{left + 24:g}" y="{down}" fill="currentColor">{page.escape(name)}</text>',
        ]
    return figure.svg(_HEIGHT, f"Held-out bits per byte over {NAMES[over]}", parts)


def _axes(least: float, most: float, low: float, high: float, over: str) -> list[str]:
    """Both axes with five marks each, and their names."""
    small = f'fill="{figure.GREY}" font-size="11"'
    made = [
        f'<text x="{_LEFT}" y="{_TOP - 1}" {small}>held-out bits per byte, over {NAMES[over]}</text>',
    ]
    for k in range(5):
        y = _BOTTOM - k / 4 * (_BOTTOM - _TOP)
        value = low + k / 4 * (high - low)
        made += [
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:g}" y2="{y:g}" stroke="#88888833"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:g}" {small} text-anchor="end">{value:.2f}</text>',
        ]
        x, anchor = _LEFT + k / 4 * (_RIGHT - _LEFT), ("start", "middle", "middle", "middle", "end")[k]
        place = f"{least * (most / least) ** (k / 4):.3g}".replace("e+", "e")
        made.append(f'<text x="{x:g}" y="{_BOTTOM + 15}" {small} text-anchor="{anchor}">{place}</text>')
    return made
