"""Text of a run or a claim in a page of Markdown: shown as it is, never read as a table, a link, a tag or a comment."""

import re
from typing import Any

from experiments.settings.visible import visible


def inline(text: Any) -> str:
    """`text` on one line. Tags and comments, entities, links, images, pipes and backslashes lose their meaning."""
    plain = visible(" ".join(str(text).split())).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", plain)
    plain = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", plain)
    return plain.replace("](", "]\\(").replace("][", "]\\[")


def code(text: Any) -> str:
    """`text` on one line as code, whatever backticks it holds."""
    plain = visible(" ".join(str(text).split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{space}{plain}{space}{fence}"


def row(cells: list[str]) -> str:
    """A line of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"
