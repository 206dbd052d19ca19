"""The text that a run continues at each evaluation, for its report."""

import itertools
from typing import Any

import numpy as np

import data
from experiments.program import inputs

AUTO = "auto"
_LEAST, _MOST = 12, 48  # Characters of a line of the held-out text.


def prompt(config: Any, corpus: Any) -> str:
    """`eval.sample_prompt`; where it is "auto", what the first held-out row begins with. "" for no sample.

    Of text it is a line or the first words of one, of a task what stands before the first answer, of other symbols a
    quarter of the row. A conversation is rendered by its template, so that with `generate.chat` there is none.
    """
    asked = config.eval.sample_prompt
    if asked != AUTO:
        return asked
    if config.generate.chat:
        return ""
    batch, tokenizer = next(inputs.eval_batches(config, corpus)), corpus.tokenizer
    tokens, targets, scored = (np.asarray(batch[name][0]) for name in ("tokens", "targets", "scored"))
    first = int(np.argmax(scored)) if scored.any() else len(tokens)
    scored = scored.astype(bool)
    ahead = int(not np.array_equal(targets[scored], tokens[scored]))  # What is scored at a place is the next token.
    special = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    given = [int(i) for i in tokens[: first + ahead] if i not in special]
    if given and not (first == 0 and ahead):
        return tokenizer.decode(given) + " " * _symbols(tokenizer)
    document, whole = _document(tokens, special)
    text = tokenizer.decode(document)
    if _symbols(tokenizer):
        return tokenizer.decode(document[: max(1, len(document) // 4)]) + " "
    rest = text.partition("\n")[2]
    return _line(tokenizer, text if whole or not rest.strip() else rest, max(1, config.data.length // 4))


def _symbols(tokenizer: Any) -> bool:
    """Whether the corpus is of symbols, written as numbers with blanks between."""
    return isinstance(tokenizer, data.SymbolTokenizer)


def _document(tokens: np.ndarray, special: tuple[int, ...]) -> tuple[list[int], bool]:
    """(ids of a document of a row, whether they are its beginning): of one that begins in the row, where there is."""
    outside = [-1, *np.flatnonzero(np.isin(tokens, special)), len(tokens)]
    pieces = [(tokens[a + 1 : b].tolist(), a >= 0) for a, b in itertools.pairwise(outside) if b - a > 1]
    return next((piece for piece in pieces if piece[1]), pieces[0] if pieces else ([], True))


def _line(tokenizer: Any, text: str, most: int) -> str:
    """The first line of `text` that is long enough, or its first words: at most 48 characters and `most` tokens."""
    lines = [line.rstrip() for line in text.replace("\ufffd", "").splitlines() if line.strip()]
    line = next((line for line in lines if len(line.strip()) >= _LEAST), lines[0] if lines else "")
    if len(line) > _MOST:
        line = line[:_MOST].rpartition(" ")[0].rstrip() or line[:_MOST]
    while len(line) > 1 and len(tokenizer.encode(line)) > most:
        line = line.rpartition(" ")[0].rstrip() or line[:-1]
    return line
