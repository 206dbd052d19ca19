"""Rows of many short problems of one size, one after another, as many as fit."""

import numpy as np


def count(size: int, length: int) -> int:
    """How many problems of `size` symbols a row of `length` + 1 symbols holds."""
    return (length + 1) // size


def fill(problems: np.ndarray, answers: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(sequence, answers), `[B, length + 1]` each, from problems `[B, Q, Z]` and which of their Z symbols are answers.

    After the last problem the row ends: -1.
    """
    batch, held = len(problems), problems.shape[1] * problems.shape[2]
    sequence = np.full((batch, length + 1), -1, np.int64)
    sequence[:, :held] = problems.reshape(batch, held)
    asked = np.zeros(sequence.shape, bool)
    asked[:, :held] = np.tile(answers, problems.shape[1])
    return sequence, asked
