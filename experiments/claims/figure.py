"""What the figures of claims share: an SVG on white, as wide as a telephone, so that letters stay letters."""

from collections.abc import Sequence

WIDTH = 400
GREY, BLUE = "#62666d", "#0067a3"


def svg(height: int, label: str, parts: Sequence[str]) -> str:
    """An SVG of WIDTH by `height` with the elements `parts`; `label` says what it shows to who does not see it."""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="100%" '
        'style="max-width:600px;display:block;background:#fff;color:#1b1c1e" '
        f'role="img" aria-label="{label}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([opening, *parts, "</svg>"])
