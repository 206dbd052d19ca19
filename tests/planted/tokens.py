"""Digits in groups, parallel texts, and the claims about tokens."""

from tests.planted import Bug

SUMS, CATALOGUES, SCRIPTS = "data/tasks/arithmetic.py", "data/catalogues.py", "experiments/claims/scripts.py"
ANSWERS, TOKENIZE = "experiments/claims/answers.py", "experiments/tokenizers/__init__.py"
TASKS = ("tests/data/tasks_structured_test.py",)
READ = ("tests/data/catalogues_test.py",)
CHECK = ("tests/experiments/claims/scripts_test.py",)
MEASURES = ("tests/experiments/claims/measures_test.py",)
MODE = ("tests/experiments/tokenizers/compare_test.py",)

BUGS = (
    Bug("groups from the right always", SUMS, "if from_left\n", "if not from_left\n", TASKS),
    Bug("groups are not told apart by length", SUMS, "first_of(count) + value, -1)", "value, -1)", TASKS),
    Bug("a group's digits from its end", SUMS, "10 * value + made[..., k]", "value + 10**k * made[..., k]", TASKS),
    Bug("lengths count symbols", SUMS, "np.where(own & (part == k), size, 0)", "np.where(own & (part == k), 1, 0)", TASKS),
    Bug("lengths of the numbers alone", ANSWERS, "(lengths == lengths[:, :1]).all(1)", "(lengths[:, 0] == lengths[:, 1])", MEASURES),
    Bug("rows without an answer are right", ANSWERS, "np.stack([right, alike])[:, scored.any(1)]", "np.stack([right, alike])", MEASURES),
    Bug("steps of an arm are taken from it", "experiments/claims/arms.py", 'if "train.steps" not in arms[arm]:', "if True:", MEASURES),
    Bug("bytes a token in nats", "experiments/claims/measures.py", '(row["eval/bits_per_byte"] * math.log(2))', 'row["eval/bits_per_byte"]', MEASURES),
    Bug("catalogues are little-endian", CATALOGUES, '_BIG: ">"', '_BIG: "<"', READ),
    Bug("catalogues are UTF-8", CATALOGUES, 'charset = named[1].decode() if named else "utf-8"', 'charset = "utf-8"', READ),
    Bug("forms of a plural are a message", CATALOGUES, '_MARKS = ("\\0", "\\4")', '_MARKS = ("\\4",)', READ),
    Bug("messages in another script stay", CATALOGUES, "2 * count > letters.total()", "count > 0", READ),
    Bug("equal messages stand twice", CATALOGUES, "if first[key[1]] == key", "if first[key[1]]", READ),
    Bug("held-out documents are trained on", SCRIPTS, "if k % 10 != 9]", "if k % 10 != 8]", CHECK),
    Bug("priors by characters", SCRIPTS, "len(_text(group, name).encode()) for group in kept", "len(_text(group, name)) for group in kept", CHECK),
    Bug("one prior for every byte of English", SCRIPTS, "one = len(languages) * claim", "one = claim", CHECK),
    Bug("disparity by languages that are next", SCRIPTS, "(counts.max(0) - counts.min(0))", "(counts[0] - counts[1])", CHECK),
    Bug("bits of all languages as the others'", SCRIPTS, 'if (name == ENGLISH) == (measure == "bits_english")', "if True", CHECK),
    Bug("the first of a row is a segment", SCRIPTS, '.total[0] - (batch["segment_ids"] != 0).any(1).sum()', ".total[0]", CHECK),
    Bug("pairs without what is below them", SCRIPTS, "(counts + kinds * p) / np.maximum(total, 1)", "(counts + kinds / 256) / np.maximum(total, 1)", CHECK),
    Bug("parity the wrong way round", TOKENIZE, "measures.parity(counts, next(iter(texts)))", "measures.parity(counts, [*texts][-1])", MODE),
    Bug("morphemes as they are written", TOKENIZE, '.read_text("utf-8").lower()', '.read_text("utf-8")', MODE),
)  # fmt: skip
