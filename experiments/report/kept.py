"""The report's section on caches: what policies of `generate.memory` cost, and what each layer kept of one text."""

import base64
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import workdir as files
from experiments.report import page
from experiments.settings.visible import visible
from experiments.workdir import disk

FEW = 4  # pictures that are shown without being asked for
WIDTH, ROW, LEFT = 720, 14, 60  # of the picture, its rows and the names of the layers, in its own units


def results(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What evaluations with `generate.memory` left in a workdir, in the order of their names.

    Errors: ValueError or WorkdirError for a file that is damaged or none of ours.
    """
    folder = workdir / files.MEMORIES
    names = [name for name in disk.names(folder) if name.endswith(".json") and name != f"{files.BUDGETS}.json"]
    return [files.read_json(folder / name) or {} for name in names]


def section(workdir: pathlib.Path) -> list[str]:
    """Tables and pictures; [] where nothing was evaluated so."""
    found = results(workdir)
    if not found:
        return []
    head = [
        "Policy", "Bits per byte", "Full cache", "Right tokens", "Full cache", "Kept attention", "At best", "State",
        "Full cache", "Tokens/s", "Full cache",
    ]  # fmt: skip
    rows = [_row(result) for result in found]
    table = page.table(head, rows, numeric=range(1, len(head)))
    pictures = [
        f"<figure>{picture(result['seen'], result['memory/prompt'])}<figcaption>{page.escape(_name(result))}: tokens "
        "of one text from left to right, a row a layer; the darker, the more heads saw the token at the end. The line "
        "ends the prompt.</figcaption></figure>"
        for result in found
    ]
    if len(pictures) > FEW:
        pictures = [f"<details><summary>What each layer kept</summary>{''.join(pictures)}</details>"]
    return [*_budgets(workdir), table, *pictures]


def _budgets(workdir: pathlib.Path) -> list[str]:
    """The figure of a sweep over budgets."""
    drawn = disk.read_bytes(workdir / files.MEMORIES / f"{files.BUDGETS}.png")
    if drawn is None:
        return []
    data = base64.b64encode(drawn).decode()
    return [
        f'<figure><img src="data:image/png;base64,{data}" style="width:100%" alt="policies at several budgets">'
        "<figcaption>Policies at several budgets, against the bytes of a row's state; dashed: the full cache."
        "</figcaption></figure>"
    ]


def _name(result: dict[str, Any]) -> str:
    name, options = result["about"]["policy"]
    return visible(f"{name}: " + ", ".join(f"{key}={value}" for key, value in options))


def _row(result: dict[str, Any]) -> list[str]:
    """Older results say nothing of right tokens, and those of claims nothing of bytes and seconds."""
    of = lambda name, show: show(result[key]) if (key := f"memory/{name}") in result else "–"  # noqa: E731
    both = lambda name, show: (of(name, show), of(f"full_{name}", show))  # noqa: E731
    bits = "{:.4f}".format
    return [
        page.escape(_name(result)), *both("bits_per_byte", bits), *both("accuracy", page.percent),
        of("kept_mass", page.percent), of("best_mass", page.percent), *both("state_bytes", page.memory),
        *both("tokens_per_second", page.count),
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
