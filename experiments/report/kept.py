"""The report's section on caches: what policies of `generate.memory` cost, and what each layer kept of one text."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import workdir as files
from experiments.report import page
from experiments.settings.visible import visible
from experiments.workdir import disk

WIDTH, ROW, LEFT = 720, 14, 60  # of the picture, its rows and the names of the layers, in its own units


def results(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What evaluations with `generate.memory` left in a workdir, in the order of their names.

    Errors: ValueError or WorkdirError for a file that is damaged or none of ours.
    """
    folder = workdir / files.MEMORIES
    return [files.read_json(folder / name) or {} for name in disk.names(folder) if name.endswith(".json")]


def section(workdir: pathlib.Path) -> list[str]:
    """Tables and pictures; [] where nothing was evaluated so."""
    found = results(workdir)
    if not found:
        return []
    head = [
        "Policy", "Bits per byte", "Full cache", "Kept attention", "At best", "State", "Full cache", "Tokens/s",
        "Full cache",
    ]  # fmt: skip
    rows = [_row(result) for result in found]
    table = page.table(head, rows, numeric=range(1, len(head)))
    pictures = [
        f"<figure>{picture(result['seen'], result['memory/prompt'])}<figcaption>{page.escape(_name(result))}: tokens "
        "of one text from left to right, a row a layer; the darker, the more heads saw the token at the end. The line "
        "ends the prompt.</figcaption></figure>"
        for result in found
    ]
    return [table, *pictures]


def _name(result: dict[str, Any]) -> str:
    name, options = result["about"]["policy"]
    return visible(f"{name}: " + ", ".join(f"{key}={value}" for key, value in options))


def _row(result: dict[str, Any]) -> list[str]:
    of = lambda name: result[f"memory/{name}"]  # noqa: E731
    return [
        page.escape(_name(result)), f"{of('bits_per_byte'):.4f}", f"{of('full_bits_per_byte'):.4f}",
        page.percent(of("kept_mass")), page.percent(of("best_mass")), page.memory(of("state_bytes")),
        page.memory(of("full_state_bytes")), page.count(of("tokens_per_second")),
        page.count(of("full_tokens_per_second")),
    ]  # fmt: skip


def picture(seen: Sequence[Sequence[float]], prompt: int) -> str:
    """An inline SVG: a row a layer from the first on, a column a token, as dark as the share of heads that saw it.

    Neighbours that are equally dark are one rectangle.
    """
    T = len(seen[0])
    wide, high = (WIDTH - LEFT) / T, ROW * len(seen)
    drawn = []
    for layer, shares in enumerate(seen):
        y = ROW * layer
        drawn.append(f'<text x="0" y="{y + ROW - 3}" font-size="10" fill="currentColor">layer {layer}</text>')
        start = 0
        for at in range(1, T + 1):
            if at == T or shares[at] != shares[start]:
                if shares[start] > 0:
                    drawn.append(
                        f'<rect x="{LEFT + start * wide:.2f}" y="{y + 1}" width="{(at - start) * wide:.2f}" '
                        f'height="{ROW - 2}" fill="currentColor" opacity="{shares[start]:.3g}"/>'
                    )
                start = at
    x = LEFT + prompt * wide
    drawn.append(f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{high}" stroke="currentColor" stroke-dasharray="2 2"/>')
    label = f"what {len(seen)} layers kept of {T} tokens"
    return f'<svg viewBox="0 0 {WIDTH} {high}" width="100%" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
