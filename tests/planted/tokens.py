"""Digits in groups, and measures of tokens."""

from tests.planted import Bug

SUMS = "data/tasks/arithmetic.py"
ANSWERS, TOKENIZE = "experiments/claims/answers.py", "experiments/tokenizers/__init__.py"
TASKS = ("tests/data/tasks_structured_test.py",)
MEASURES = ("tests/experiments/claims/measures_test.py",)
MODE = ("tests/experiments/tokenizers/compare_test.py",)

BUGS = (
    Bug("groups from the right always", SUMS, "if from_left\n", "if not from_left\n", TASKS),
    Bug("groups are not told apart by length", SUMS, "(10**count - 10) // 9 + value, -1)", "value, -1)", TASKS),
    Bug("a group's digits from its end", SUMS, "10 * value + made[..., k]", "value + 10**k * made[..., k]", TASKS),
    Bug("lengths count symbols", SUMS, "np.where(own & (part == k), size, 0)", "np.where(own & (part == k), 1, 0)", TASKS),
    Bug("lengths of the numbers alone", ANSWERS, "(lengths == lengths[:, :1]).all(1)", "(lengths[:, 0] == lengths[:, 1])", MEASURES),
    Bug("rows without an answer are right", ANSWERS, "np.stack([right, alike])[:, scored.any(1)]", "np.stack([right, alike])", MEASURES),
    Bug("steps of an arm are taken from it", "experiments/claims/arms.py", 'if "train.steps" not in arms[arm]:', "if True:", MEASURES),
    Bug("bytes a token in nats", "experiments/claims/measures.py", '(row["eval/bits_per_byte"] * math.log(2))', 'row["eval/bits_per_byte"]', MEASURES),
    Bug("parity the wrong way round", TOKENIZE, "measures.parity(counts, next(iter(texts)))", "measures.parity(counts, [*texts][-1])", MODE),
    Bug("morphemes as they are written", TOKENIZE, '.read_text("utf-8").lower()', '.read_text("utf-8")', MODE),
)  # fmt: skip
