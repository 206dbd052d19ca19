"""Rows of tasks whose answers have no fixed length: a prompt, an answer, its END, and perhaps padding to be learned.

Parts are `[B, n]` int64, -1 in gaps; joining closes the gaps. B is rows.
"""

import numpy as np


def joined(*parts: np.ndarray) -> np.ndarray:
    """The parts of each row one behind the other without their gaps, -1 behind the end: `[B, sum of n]`."""
    whole = np.concatenate(parts, axis=1)
    return np.take_along_axis(whole, np.argsort(whole < 0, axis=1, kind="stable"), axis=1)


def asked(
    prompt: np.ndarray, answer: np.ndarray, width: int, *, end: int, room: int = 0, pads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[B, width]` of prompt, answer and END, -1 behind them, and which symbols are answers (END is one).

    room: symbols that every answer takes, END included; 0: as many as it has. The rest of the room is filled with END,
    or with `pads` K > 0 by the symbols end + 1 .. end + K in turn (rainbow padding). These are answers, too: a model
    that fills a canvas must learn them.
    """
    size = (answer >= 0).sum(1, keepdims=True)
    index = np.arange(room or answer.shape[1] + 1)
    body = np.pad(joined(answer), ((0, 0), (0, max(0, len(index) - answer.shape[1]))))[:, : len(index)]
    behind = end + (1 + (index - size - 1) % pads if pads else 0 * (index - size))
    block = np.where(index < size, body, np.where(index == size, end, behind if room else -1))
    is_answer = joined(np.where(prompt < 0, -1, 0), np.where(block < 0, -1, 1)) > 0
    fill = ((0, 0), (0, width - prompt.shape[1] - block.shape[1]))
    return np.pad(joined(prompt, block), fill, constant_values=-1), np.pad(is_answer, fill)


def check_room(room: int, longest: int) -> None:
    """Raises ValueError where an answer of `longest` symbols and its END do not fit `room`."""
    if room and room < longest + 1:
        raise ValueError(f"room={room} does not hold an answer of {longest} symbols and its end; use {longest + 1}.")
