"""The second figure of a claim whose rows keep curves: held-out bits per byte over epochs or FLOPs (log), by arm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import page

_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 392, 12, 196
NAMES = {"epochs": "epochs", "flops": "FLOPs"}
_COLOURS = ("#0067a3", "#b3470f", "#2e7d32", "#6a3d9a")


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the first row's `curves`, {arm: {"epochs" or "flops": [n], "bits_per_byte": [seeds][n]}}: means over
    seeds, and bands from the lowest to the highest seed; "" where no row keeps curves."""
    kept = [row["numbers"]["curves"] for row in rows if row.get("numbers", {}).get("curves")]
    if not kept:
        return ""
    arms = kept[0]
    over = "flops" if all("flops" in arm for arm in arms.values()) else "epochs"
    epochs = [epoch for arm in arms.values() for epoch in arm[over]]
    least, most = min(epochs), max(epochs)
    bits = [value for arm in arms.values() for seed in arm["bits_per_byte"] for value in seed]
    low, high = min(bits), max(bits)
    room = 0.05 * (high - low) or 0.1
    low, high = low - room, high + room

    def at(epoch: float, value: float) -> str:
        x = _LEFT + math.log(epoch / least) / math.log(most / least) * (_RIGHT - _LEFT)
        y = _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" '
        'style="max-width:600px;display:block;background:#fff;color:#1b1c1e" '
        f'role="img" aria-label="Held-out bits per byte over {NAMES[over]}" font-family="sans-serif" font-size="12">',
        *_axes(least, most, low, high, over),
    ]
    for k, (name, arm) in enumerate(arms.items()):
        colour, by_point = _COLOURS[k % len(_COLOURS)], list(zip(*arm["bits_per_byte"], strict=True))
        band = [at(epoch, max(some)) for epoch, some in zip(arm[over], by_point, strict=True)]
        band += [at(epoch, min(some)) for epoch, some in reversed(list(zip(arm[over], by_point, strict=True)))]
        line = [at(epoch, sum(some) / len(some)) for epoch, some in zip(arm[over], by_point, strict=True)]
        left = _LEFT + k % 2 * (_RIGHT - _LEFT) / 2
        down = _BOTTOM + 36 + k // 2 * 16
        parts += [
            f'<polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.2"/>',
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<line x1="{left:g}" x2="{left + 18:g}" y1="{down - 4}" y2="{down - 4}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<text x="{left + 24:g}" y="{down}" fill="currentColor">{page.escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"])


def _axes(least: float, most: float, low: float, high: float, over: str) -> list[str]:
    """Both axes with five marks each, and their names."""
    made = [
        f'<text x="{_LEFT}" y="{_TOP - 1}" fill="#62666d" font-size="11">held-out bits per byte</text>',
        f'<text x="{_RIGHT}" y="{_BOTTOM + 15}" fill="#62666d" font-size="11" text-anchor="end">'
        f"{most:.3g} {NAMES[over]}</text>",
    ]
    for k in range(5):
        y = _BOTTOM - k / 4 * (_BOTTOM - _TOP)
        value = low + k / 4 * (high - low)
        made += [
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:g}" y2="{y:g}" stroke="#88888833"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:g}" fill="#62666d" font-size="11" text-anchor="end">{value:.2f}</text>',
        ]
        if k < 4:
            x = _LEFT + k / 4 * (_RIGHT - _LEFT)
            epoch = least * (most / least) ** (k / 4)
            made.append(f'<text x="{x:g}" y="{_BOTTOM + 15}" fill="#62666d" font-size="11">{epoch:.3g}</text>')
    return made
