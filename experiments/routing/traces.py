"""Traces of routing: the experts of each token in each layer, `[tokens, layers, K]` int16, -1 for an unused choice."""

import io
from typing import Any

import numpy as np

from experiments import workdir as files
from experiments.settings.errors import Refused


def checked(trace: Any, experts: int) -> np.ndarray:
    """A trace `[N, L, K]` (or `[N, L]`, one choice) as int64 `[N, L, K]`.

    Raises:
      ValueError: it has other dimensions, or an id that is none of `experts`.
    """
    trace = np.asarray(trace)
    if trace.ndim == 2:
        trace = trace[:, :, None]
    if trace.ndim != 3 or not np.issubdtype(trace.dtype, np.integer):
        raise ValueError(
            f"a trace of shape {trace.shape} and type {trace.dtype} is none; give [tokens, layers, K] ids."
        )
    if trace.size and not -1 <= trace.min() <= trace.max() < experts:
        raise ValueError(
            f"the trace holds ids from {trace.min()} to {trace.max()}; experts={experts} has 0 to {experts - 1}."
        )
    return trace.astype(np.int64)


def load(trace: Any, experts: int) -> np.ndarray:
    """Choices of each expert in each layer, `[L, E]`."""
    trace = checked(trace, experts)
    found = np.zeros((trace.shape[1], experts), np.int64)
    for layer in range(trace.shape[1]):
        ids = trace[:, layer].ravel()
        found[layer] = np.bincount(ids[ids >= 0], minlength=experts)
    return found


def transitions(trace: Any, experts: int) -> np.ndarray:
    """R[l, e, e']: how often a token that chose e in layer l chose e' in layer l + 1, `[L - 1, E, E]`.

    Every pair of choices counts, K x K of them a token.
    """
    trace = checked(trace, experts)
    N, L, K = trace.shape
    found = np.zeros((L - 1, experts, experts), np.int64)
    for layer in range(L - 1):
        for a in range(K):
            for b in range(K):
                here, after = trace[:, layer, a], trace[:, layer + 1, b]
                used = (here >= 0) & (after >= 0)
                np.add.at(found[layer], (here[used], after[used]), 1)
    return found


def affinity(counted: Any) -> np.ndarray:
    """P(e' in layer l + 1 | e in layer l) from `transitions`, `[L - 1, E, E]`; rows of experts never chosen are 0."""
    counted = np.asarray(counted, float)
    total = counted.sum(-1, keepdims=True)
    return np.divide(counted, total, out=np.zeros_like(counted), where=total > 0)


def save(path: str, trace: Any, experts: int) -> None:
    """Writes `[tokens, layers, K]` as an .npz of int16 `trace` and the number of `experts`."""
    if experts > np.iinfo(np.int16).max:
        raise ValueError(f"experts={experts} do not fit int16 ids; use at most {np.iinfo(np.int16).max}.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, trace=checked(trace, experts).astype(np.int16), experts=np.int64(experts))
    files.write_file(path, buffer.getvalue())


def read(path: str) -> tuple[np.ndarray, int]:
    """`(trace [N, L, K] int64, experts)` of a file of `save`. Refused where the file is none."""
    try:
        with files.disk.open_to_read(path) as file, np.load(file, allow_pickle=False) as held:
            return checked(held["trace"], int(held["experts"])), int(held["experts"])
    except Exception as error:  # What a damaged zip file raises is not one class: also NotImplementedError, EOFError.
        raise Refused(f"{path} is no trace of routing ({error}); traces.write makes one.") from None
