"""Traces of routing: the experts of each token in each layer, `[tokens, layers, K]` int16, -1 for an unused choice."""

import io
from collections.abc import Callable
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


def information(counted: Any) -> float:
    """I(text; expert) in nats: how much the text of a token says of its expert, from choices by text `[R, E]`.

    H(sum_r n_r / n) - sum_r n_r / n H(n_re / n_r): 0 where every text has the same load, log E where each expert has
    its own texts. A text of few tokens has an uneven load by chance: compare texts of one length.
    """
    counted = np.asarray(counted, float)
    total = counted.sum()
    if not total:
        return 0.0
    joint, text, expert = counted / total, counted.sum(1) / total, counted.sum(0) / total
    alone = np.outer(text, expert)
    some = joint > 0
    return float(np.sum(joint[some] * np.log(joint[some] / alone[some])))


def affinity(counted: Any) -> np.ndarray:
    """P(e' in layer l + 1 | e in layer l) from `transitions`, `[L - 1, E, E]`; rows of experts never chosen are 0."""
    counted = np.asarray(counted, float)
    total = counted.sum(-1, keepdims=True)
    return np.divide(counted, total, out=np.zeros_like(counted), where=total > 0)


def telling(counted: Any, most: int) -> list[list[int]]:
    """For each expert at most `most` texts, those that say most of it first: of counts `[M, E]` of text and expert the
    largest n_me log(n_me n / (n_m n_e)), its share of I(text; expert), above 0."""
    counted = np.asarray(counted, float)
    alone = np.outer(counted.sum(1), counted.sum(0)) / max(counted.sum(), 1)
    some = counted > 0
    said = np.where(some, counted * np.log(np.where(some, counted, 1) / np.where(some, alone, 1)), 0)
    order = np.argsort(-said, axis=0, kind="stable")[:most]
    return [[int(m) for m in column if said[m, e] > 0] for e, column in enumerate(order.T)]


def by_text(trace: Any, tokens: Any, texts: int, experts: int, layer: int) -> np.ndarray:
    """How often each of `texts` had each expert in a layer, `[M, E]`: a trace, and the text of its tokens `[N]`."""
    ids, tokens = checked(trace, experts)[:, layer], np.asarray(tokens)
    found, used = np.zeros((texts, experts), np.int64), ids >= 0
    np.add.at(found, (np.broadcast_to(tokens[:, None], ids.shape)[used], ids[used]), 1)
    return found


def save(path: str, trace: Any, experts: int, told: tuple[Any, Any] | None = None) -> None:
    """Writes `[tokens, layers, K]` as an .npz of int16 `trace` and the number of `experts`.

    `told`: `(tokens [N], texts [M])`, which of the texts each token is, written as int32 and as text.
    """
    if experts > np.iinfo(np.int16).max:
        raise ValueError(f"experts={experts} do not fit int16 ids; use at most {np.iinfo(np.int16).max}.")
    buffer = io.BytesIO()
    more = {} if told is None else {"tokens": np.asarray(told[0], np.int32), "texts": np.asarray(told[1], np.str_)}
    np.savez_compressed(buffer, trace=checked(trace, experts).astype(np.int16), experts=np.int64(experts), **more)
    files.write_file(path, buffer.getvalue())


def read(path: str) -> tuple[np.ndarray, int]:
    """`(trace [N, L, K] int64, experts)` of a file of `save`. Refused where the file is none."""
    return _read(path, lambda held: (checked(held["trace"], int(held["experts"])), int(held["experts"])))


def read_texts(path: str) -> tuple[np.ndarray, list[str]] | None:
    """`(tokens [N], texts [M])` of a file of `save`, None where it was written without. Refused where it is none."""

    def made(held: Any) -> tuple[np.ndarray, list[str]] | None:
        if "tokens" not in held:
            return None
        tokens, texts = held["tokens"].astype(np.int64), [str(text) for text in held["texts"]]
        if tokens.shape != held["trace"].shape[:1] or not (
            tokens.size and 0 <= tokens.min() <= tokens.max() < len(texts)
        ):
            raise ValueError(f"{tokens.shape} tokens of {len(texts)} texts for a trace of {held['trace'].shape}")
        return tokens, texts

    return _read(path, made)


def _read(path: str, made: Callable[[Any], Any]) -> Any:
    try:
        with files.disk.open_to_read(path) as file, np.load(file, allow_pickle=False) as held:
            return made(held)
    except Exception as error:  # What a damaged zip file raises is not one class: also NotImplementedError, EOFError.
        raise Refused(f"{path} is no trace of routing ({error}); traces.write makes one.") from None
