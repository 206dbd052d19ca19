"""Refusals of arrays whose shapes do not fit q, in the words of the caller."""

from typing import Any


def check_shapes(q: Any, **wanted: tuple[Any, tuple[int, ...]]) -> None:
    """Raises ValueError where q is not [B, T, N, H] without an empty axis, or an array has another shape than it needs.

    wanted: for each argument the array, or None where it was not given, and the shape that q asks of it. A name with
      `__` in it is one with a dot.
    """
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q has shape {q.shape}; use [B, T, N, H] with no empty axis.")
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            name = name.replace("__", ".")
            raise ValueError(f"{name} has shape {array.shape}; q of shape {q.shape} needs {shape}.")
