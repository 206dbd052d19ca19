"""Embeddings for a new tokenizer, from those of the old one: plain functions of arrays and pieces, in numpy.

`E` is `[V, D]`, rows of the old tokenizer's ids; the result has the new one's. A rule is a name in `RULES`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Encode = Callable[[bytes], Sequence[int]]


def shared(old: Sequence[bytes], new: Sequence[bytes], ignore_case: bool = False) -> np.ndarray:
    """Old id of each new piece, -1 where there is none, `[V']`; empty pieces (specials) are not pieces.

    Args:
      ignore_case: a piece without a match takes the first old piece that differs in case alone (TokenAdapt).
    """
    index: dict[bytes, int] = {}
    folded: dict[bytes, int] = {}
    for i, piece in enumerate(old):
        if piece:
            index.setdefault(piece, i)
            folded.setdefault(_folded(piece), i)
    loose = folded if ignore_case else {}
    return np.array([index.get(p, loose.get(_folded(p), -1)) if p else -1 for p in new])


def _folded(piece: bytes) -> bytes:
    return piece.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")


def random_like(E: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`[count, D]` from a normal law with the mean and the standard deviation over ALL numbers of E (one of each)."""
    return np.random.default_rng(seed).normal(E.mean(), E.std(ddof=1), (count, E.shape[1]))


def mean_rows(E: np.ndarray, count: int) -> np.ndarray:
    """`[count, D]`, each the mean of E's rows (Hewitt 2021)."""
    return np.broadcast_to(E.mean(0), (count, E.shape[1])).copy()


def pieces_mean(E: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Mean of the rows of the old ids that a new piece is made of, `[D]` (ReTok, Gu et al. 2024, arXiv:2410.04335).

    Of a piece that the old tokenizer has no ids for, the mean of all rows.
    """
    return E[np.asarray(ids, int)].mean(0) if len(ids) else E.mean(0)


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """exp(s / tau) / sum, `[n]`; -inf has weight 0."""
    scores = np.asarray(scores, np.float64) / temperature
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def cosines(vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine of `vector [E]` with each row of `rows [n, E]`, `[n]`; 0 for a zero vector."""
    norms = np.linalg.norm(vector) * np.linalg.norm(rows, axis=1)
    return np.divide(rows @ vector, norms, out=np.zeros(len(rows)), where=norms > 0)


def local_weights(
    full: np.ndarray,
    parts: np.ndarray,
    lengths: Sequence[int],
    length: int,
    temperature: float = 0.3,
    variant: str = "averaged",
    threshold: float = 0.6,
) -> np.ndarray:
    """TokenAdapt's weights of the old pieces that a new token is made of, `[n]`, sum 1 (arXiv:2505.09738).

    With c = cosines of the token and its pieces in an external embedding model, r = lengths / length in characters:
      averaged: softmax((c + r) / 2 / tau);
      softmaxed: softmax((softmax(c / tau) + r) / 2 / (tau + 1e-9));
      thresholded: softmax((c [c >= 0.7 threshold] + 1 / n + min(r, 1)) / tau).
    These are three states of the released code, in the order of their dates; its callers add 1e-5 to tau.

    Args:
      full: `[E]` of the token. parts: `[n, E]` of its pieces.
      lengths: characters of each piece. length: those of the token.
    """
    c = cosines(np.asarray(full, np.float64), np.asarray(parts, np.float64))
    r = np.asarray(lengths, np.float64) / length
    if variant == "averaged":
        return softmax((c + r) / 2, temperature)
    if variant == "softmaxed":
        return softmax((softmax(c, temperature) + r) / 2, temperature + 1e-9)
    if variant == "thresholded":
        return softmax(c * (c >= 0.7 * threshold) + 1 / len(c) + np.minimum(r, 1), temperature)
    raise ValueError(f"variant={variant!r} is unknown; use 'averaged', 'softmaxed' or 'thresholded'.")


def global_weights(
    query: np.ndarray, table: np.ndarray, k: int = 3, temperature: float = 0.3, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(ids of the k nearest old tokens by cosine, nearest first; their weights softmax(cosine / tau)), `[k]` each.

    Args:
      query: `[E]` of the new token. table: `[V, E]` of the old tokens, in an external embedding model.
      threshold: neighbours with a cosine below it have weight 0; where all are, both results are empty.
    """
    c = cosines(np.asarray(query, np.float64), np.asarray(table, np.float64))
    nearest = np.argsort(-c, kind="stable")[:k]
    scores = c[nearest]
    if threshold is not None:
        if not (scores >= threshold).any():
            return np.empty(0, int), np.empty(0)
        scores = np.where(scores >= threshold, scores, -np.inf)
    return nearest, softmax(scores, temperature)


def hybrid(local: np.ndarray | None, far: np.ndarray | None, weight: float = 0.3) -> np.ndarray | None:
    """weight * far + (1 - weight) * local, `[D]`; the one that exists where the other does not; None for neither."""
    if local is None or far is None:
        return far if local is None else local
    return weight * far + (1 - weight) * local


def transmi_sources(pieces: Sequence[str], transliterated: Sequence[str]) -> dict[str, list[str]]:
    """New piece -> its sources, in the order of `pieces`: transliterations that are no piece yet and not empty."""
    known, sources = set(pieces), {}
    for piece, new in zip(pieces, transliterated, strict=True):
        if new and new not in known:
            sources.setdefault(new, []).append(piece)
    return sources


def transmi_scores(sources: Mapping[str, Sequence[str]], scores: Mapping[str, float], mode: str = "max"):
    """Score of each new piece, best first (equal scores in order of discovery): max, min or average of its sources'.

    Source: Liu et al. 2024, arXiv:2405.09913.
    """
    rules = {"max": max, "min": min, "average": lambda values: sum(values) / len(values)}
    if mode not in rules:
        raise ValueError(f"mode={mode!r} is unknown; use 'max', 'min' or 'average'.")
    made = {new: rules[mode]([scores[s] for s in some]) for new, some in sources.items()}
    return dict(sorted(made.items(), key=lambda item: item[1], reverse=True))


def transmi_embedding(
    rows: np.ndarray, scores: Sequence[float], mode: str = "max", released: bool = False
) -> np.ndarray:
    """Embedding of a new piece from its sources' rows `[n, D]`: that of the best score, of the worst, or their mean.

    Args:
      scores: of the sources, in the order of the vocabulary.
      released: as the released code: max takes the FIRST source and min the LAST (the vocabulary falls in score, but
        for pieces out of order), and average SUMS the rows.
    """
    rows = np.asarray(rows, np.float64)
    if mode == "average":
        return rows.sum(0) if released and len(rows) > 1 else rows.mean(0)
    if mode not in ("max", "min"):
        raise ValueError(f"mode={mode!r} is unknown; use 'max', 'min' or 'average'.")
    if released:
        return rows[0] if mode == "max" else rows[-1]
    return rows[int(np.argmax(scores) if mode == "max" else np.argmin(scores))]


@dataclasses.dataclass(frozen=True)
class Change:
    """Two vocabularies and what is known of their pieces."""

    old: Sequence[bytes]
    new: Sequence[bytes]
    encode: Encode  # by the old tokenizer
    seed: int = 0
    external: Callable[[Sequence[bytes]], np.ndarray] = None  # pieces -> [n, E]; None: counts of their letters
    temperature: float = 0.3
    neighbours: int = 3
    weight: float = 0.3
    threshold: float | None = None
    variant: str = "averaged"
    specials: Sequence[tuple[int, int]] | None = None  # (old id, new id) of each; None: empty pieces in their order
    transliterate: Callable[[str], str] | None = None  # of TransMI (`data.tokenizers.romanise`); None: as they are
    predicted: np.ndarray | None = None  # [V', D], of a hypernetwork


def letter_counts(pieces: Sequence[bytes], size: int = 512) -> np.ndarray:
    """An embedding model without training: counts of hashed 1-, 2- and 3-grams of bytes, `[n, size]`."""
    import zlib

    table = np.zeros((len(pieces), size))
    for row, piece in zip(table, pieces, strict=True):
        marked = b"\x02" + piece + b"\x03"
        for n in (1, 2, 3):
            for k in range(len(marked) - n + 1):
                row[zlib.crc32(marked[k : k + n]) % size] += 1
    return table


def _fill(change: Change, E: np.ndarray, rest: Callable[[int], np.ndarray], ignore_case: bool = False) -> np.ndarray:
    """Shared pieces and specials copied, the new piece i filled by rest(i); specials without a pair have the mean."""
    known = shared(change.old, change.new, ignore_case)
    for o, i in pairs_of_specials(change):
        known[i] = o
    out, middle = np.empty((len(change.new), E.shape[1]), E.dtype), E.mean(0)
    for i, source in enumerate(known):
        out[i] = E[source] if source >= 0 else rest(i) if change.new[i] else middle
    return out


def pairs_of_specials(change: Change) -> list[tuple[int, int]]:
    """(old id, new id) of specials: those that `change` names, else the empty pieces of both in their order."""
    if change.specials is not None:
        return list(change.specials)
    return list(zip(*([i for i, p in enumerate(pieces) if not p] for pieces in (change.old, change.new)), strict=False))


def random_rule(change: Change, E: np.ndarray) -> np.ndarray:
    """Every piece anew, `[V', D]`; specials copied."""
    drawn = random_like(E, len(change.new), change.seed).astype(E.dtype)
    for o, i in pairs_of_specials(change):
        drawn[i] = E[o]
    return drawn


def mean_rule(change: Change, E: np.ndarray) -> np.ndarray:
    """Shared pieces copied, others the mean of all rows."""
    middle = E.mean(0)
    return _fill(change, E, lambda i: middle)


def copy_mean_rule(change: Change, E: np.ndarray) -> np.ndarray:
    """Shared pieces copied, others the mean of the old pieces that they are made of (ReTok)."""
    return _fill(change, E, lambda i: pieces_mean(E, change.encode(change.new[i])))


def _local(change: Change, E: np.ndarray, i: int) -> np.ndarray | None:
    ids = np.asarray(change.encode(change.new[i]), int)
    if not len(ids):
        return None
    parts = [change.old[k] for k in ids]
    embed = change.external or letter_counts
    told = embed([change.new[i], *parts])
    lengths = [len(p.decode("utf-8", "replace")) for p in parts]
    length = len(change.new[i].decode("utf-8", "replace"))
    threshold = 0.6 if change.threshold is None else change.threshold
    weights = local_weights(told[0], told[1:], lengths, length, change.temperature, change.variant, threshold)
    return weights @ E[ids]


def tokenadapt_rule(change: Change, E: np.ndarray, weight: float | None = None) -> np.ndarray:
    """Shared pieces copied, also where case alone differs; others TokenAdapt's hybrid (weight 0: local, 1: global)."""
    weight = change.weight if weight is None else weight
    embed = change.external or letter_counts
    olds = [i for i, piece in enumerate(change.old) if piece]
    table = embed([change.old[i] for i in olds]) if weight > 0 else None

    def rest(i: int) -> np.ndarray:
        near = _local(change, E, i) if weight < 1 else None
        far = None
        if table is not None:
            query = embed([change.new[i]])[0]
            found, weights = global_weights(query, table, change.neighbours, change.temperature, change.threshold)
            far = weights @ E[np.asarray(olds)[found]] if len(found) else None
        made = hybrid(near, far, weight)
        return random_like(E, 1, change.seed + i)[0] if made is None else made

    return _fill(change, E, rest, ignore_case=True)


def transmi_rule(change: Change, E: np.ndarray, mode: str) -> np.ndarray:
    """Shared pieces copied; transliterations of old pieces by `transmi_embedding`, others the mean of old pieces.

    A piece scores the higher, the earlier it stands in the old vocabulary, as in those of BPE and unigram.
    """
    texts = {i: _text(piece) for i, piece in enumerate(change.old) if _text(piece)}
    ids = {text: i for i, text in texts.items()}
    found = transmi_sources([*ids], [*map(change.transliterate or str, ids)])

    def rest(i: int) -> np.ndarray:
        if not (sources := [ids[text] for text in found.get(_text(change.new[i]), ())]):
            return pieces_mean(E, change.encode(change.new[i]))
        return transmi_embedding(E[sources], [-k for k in sources], mode)

    return _fill(change, E, rest)


def _text(piece: bytes) -> str:
    """A piece as text, "" where it is none."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def zett_rule(change: Change, E: np.ndarray) -> np.ndarray:
    """Shared pieces copied, others as `change.predicted`, `[V', D]`, of a hypernetwork (`models.hypernetwork`).

    Errors: ValueError without a prediction.
    """
    if change.predicted is None:
        raise ValueError("rule='zett' needs the predictions of a hypernetwork; use e.g. rule='copy_mean'.")
    return _fill(change, E, lambda i: change.predicted[i])


# By name: (change, E [V, D]) -> [V', D]. An identical tokenizer keeps every row but of `random`.
RULES: dict[str, Callable[[Change, np.ndarray], np.ndarray]] = {
    "random": random_rule,
    "mean": mean_rule,
    "copy_mean": copy_mean_rule,
    "tokenadapt_local": lambda change, E: tokenadapt_rule(change, E, 0.0),
    "tokenadapt_global": lambda change, E: tokenadapt_rule(change, E, 1.0),
    "tokenadapt": tokenadapt_rule,
    "transmi_max": lambda change, E: transmi_rule(change, E, "max"),
    "transmi_min": lambda change, E: transmi_rule(change, E, "min"),
    "transmi_average": lambda change, E: transmi_rule(change, E, "average"),
    "zett": zett_rule,
}


def transplanted(change: Change, E: np.ndarray, rule: str) -> np.ndarray:
    """`[V', D]` by the rule of that name; E itself where the two vocabularies are the same.

    Errors: ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown; use one of {sorted(RULES)}.")
    return E if list(change.old) == list(change.new) else RULES[rule](change, E)
