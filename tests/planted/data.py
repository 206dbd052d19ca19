"""Corpora, packing, order, tokenizers and tasks."""

from tests.planted import Bug

PACKING, ORDER = ("tests/data/packing_test.py",), ("tests/data/order_test.py",)
LOADER = ("tests/data/passes_test.py", "tests/data/loader_test.py")
TASKS = tuple(f"tests/data/tasks{name}_test.py" for name in ("_structured", "_laws", ""))
CORPUS = ("tests/data/corpus_test.py",)

BUGS = (
    Bug(
        "a target that crosses a document's border",
        "data/packing.py",
        "held[:, 1:] & held[:, :-1] & ~begins[:, 1:]",
        "held[:, 1:] & held[:, :-1]",
        (*PACKING, *LOADER),
    ),
    Bug(
        "positions go on over documents",
        "data/packing.py",
        "positions = column - np.maximum.accumulate(np.where(rows.first, column, 0), axis=1)",
        "positions = column + 0 * np.maximum.accumulate(np.where(rows.first, column, 0), axis=1)",
        (*PACKING, *LOADER),
    ),
    Bug(
        "the last row is lost",
        "data/packing.py",
        "return -(-len(self.tokens.tokens) // self.length)",
        "return len(self.tokens.tokens) // self.length",
        (*PACKING, *LOADER),
    ),
    Bug(
        "first fit: a long document's rows begin one late",
        "data/packing.py",
        "tokens.starts[which] + chunk * length]",
        "tokens.starts[which] + chunk * length + 1]",
        PACKING,
    ),
    Bug(
        "first fit: a row filled beyond its end",
        "data/packing.py",
        "if room[node] < size:",
        "if room[node] < size - 1:",
        PACKING,
    ),
    Bug(
        "padding has a segment",
        "data/packing.py",
        "segments[~rows.held] = 0",
        "segments[~rows.held] = 1",
        (*PACKING, *LOADER),
    ),
    Bug(
        "processes read the same rows",
        "data/loader.py",
        "self._first_row = batch_size // process_count * process_index",
        "self._first_row = 0 * process_index",
        LOADER,
    ),
    Bug(
        "every epoch in one order",
        "data/loader.py",
        "order.permute(place, count, self.seed + (k << 40), epoch)",
        "order.permute(place, count, self.seed + (k << 40), 0 * epoch)",
        LOADER,
    ),
    Bug(
        "a seed that is not read",
        "data/loader.py",
        "place = order.permute(place, self.num_rows, self.seed, epoch)",
        "place = order.permute(place, self.num_rows, 0, epoch)",
        LOADER,
    ),
    Bug(
        "blocks of rows that overlap",
        "data/loader.py",
        "at = start % _BLOCK",
        "at = max(0, start % _BLOCK - 1)",
        LOADER,
    ),
    Bug(
        "a permutation of two rounds",
        "data/order.py",
        "for r in range(0, _ROUNDS, 2):",
        "for r in range(0, 2, 2):",
        ORDER,
    ),
    Bug(
        "a mixture: quotas from the turn before",
        "data/order.py",
        "if had[k] * period < weights[k] * turn",
        "if had[k] * period <= weights[k] * turn",
        ORDER,
    ),
    Bug(
        "a mixture: every period again",
        "data/order.py",
        "return chosen, period * np.asarray(weights, np.int64)[chosen] + rank[turn]",
        "return chosen, period + rank[turn]",
        (*ORDER, *LOADER),
    ),
    Bug(
        "validation by the wrong side of the border",
        "data/division.py",
        "held = first_word < np.uint64(",
        "held = first_word > np.uint64(",
        ("tests/data/division_test.py", *CORPUS),
    ),
    Bug(
        "a document without its end",
        "data/tokenise.py",
        "tokens[end - 1] = kind.bos, ids, kind.eos",
        "tokens[end - 1] = kind.bos, ids, kind.bos",
        CORPUS,
    ),
    Bug(
        "ids of 256 in a byte",
        "data/tokenise.py",
        "np.uint8 if vocab_size <= 1 << 8 else",
        "np.uint8 if vocab_size <= 1 << 9 else",
        CORPUS,
    ),
    Bug(
        "the end and the padding of a tokenizer swapped",
        "data/tokenizer.py",
        "(len(pieces) + k for k in range(3))",
        "(len(pieces) + k for k in (0, 2, 1))",
        ("tests/data/tokenizer_test.py",),
    ),
    Bug(
        "specials have bytes",
        "data/tokenizer.py",
        "(np.arange(self.vocab_size) < self.num_symbols)",
        "(np.arange(self.vocab_size) <= self.num_symbols)",
        ("tests/data/tokenizer_test.py", *CORPUS),
    ),
    Bug(
        "recall: answers where the query stands",
        "data/tasks/recall.py",
        "np.put_along_axis(answers, at + 1, True, 1)",
        "np.put_along_axis(answers, at, True, 1)",
        TASKS,
    ),
    Bug(
        "recall: values drawn with keys", "data/tasks/recall.py", "values = self.keys + draws", "values = draws", TASKS
    ),
    Bug(
        "Markov: contexts read the newest first",
        "data/tasks/markov.py",
        "(state * self.symbols + drawn) % len(self.transitions)",
        "(state + drawn * len(self.transitions) // self.symbols) % len(self.transitions)",
        TASKS,
    ),
    Bug(
        "Markov: the loss of one symbol by itself",
        "data/tasks/markov.py",
        "return float(-self.stationary @ (p * np.log(p)).sum(axis=1))",
        "return float(-np.full(len(p), 1 / len(p)) @ (p * np.log(p)).sum(axis=1))",
        TASKS,
    ),
    Bug(
        "arithmetic: the digits of the answer as written",
        "data/tasks/arithmetic.py",
        "answer[:, ::-1] if self.reverse else answer",
        "answer",
        TASKS,
    ),
    Bug(
        "scores: rows without an answer count",
        "data/tasks/scoring.py",
        "(right | ~scored).all(axis=1)[asked].mean()",
        "(right | ~scored).all(axis=1).mean()",
        TASKS,
    ),
)
