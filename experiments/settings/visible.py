"""Text of a run or a person as a reader may see it: nothing in it moves, hides or reorders what stands around it."""

from typing import Any

# What reorders text or has no width: a page that shows it raw shows something else than what is there. The joiners
# U+200C and U+200D stay, which Persian, Hindi and many emoji are written with.
_MARKS = {0x61C, 0x200B, 0x200E, 0x200F, 0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB}
_HIDDEN = _MARKS | {*range(0x2028, 0x202F), *range(0x2060, 0x2070)}


def visible(text: Any, keep: str = "\n\t") -> str:
    """`text` with control characters and those of bidirectional text or without width spelt out, as \\x1b or \\u202e.

    Args:
      text: anything that `str` takes; lone surrogates become "?".
      keep: control characters that stay as they are.
    """
    shown = "".join(_spelt(c) if _is_hidden(c) and c not in keep else c for c in str(text))
    return shown.encode("utf-8", "replace").decode("utf-8")


def _is_hidden(character: str) -> bool:
    code = ord(character)
    tag = 0xE0000 <= code <= 0xE007F  # A second alphabet that nothing draws.
    return code < 0x20 or 0x7F <= code < 0xA0 or code in _HIDDEN or tag


def _spelt(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
