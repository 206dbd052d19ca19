"""Digits in groups, parallel texts, and the claims about tokens."""

from tests.planted import Bug

SUMS, CATALOGUES, SCRIPTS = "data/tasks/arithmetic.py", "data/catalogues.py", "experiments/claims/scripts.py"
ANSWERS, TOKENIZE = "experiments/claims/answers.py", "experiments/tokenizers/__init__.py"
TASKS = ("tests/data/tasks_structured_test.py",)
READ = ("tests/data/catalogues_test.py",)
CHECK = ("tests/experiments/claims/scripts_test.py",)
MEASURES = ("tests/experiments/claims/measures_test.py",)
MODE = ("tests/experiments/tokenizers/compare_test.py",)

RULES = ("tests/models/transplant_test.py",)
DRAWN = ("tests/data/tokenizers/sampled_test.py",)
MOVED = ("tests/experiments/workdir/transplanted_test.py",)
LEARNED = ("tests/data/tokenizers/learners_test.py",)
PROMPTS = ("tests/experiments/generation/dynamic_test.py",)
TRANSPLANT, HYPER = "models/transplant.py", "models/hypernetwork.py"
SAMPLED, DYNAMIC = "data/tokenizers/sampled.py", "data/tokenizers/dynamic.py"
ZETT = "experiments/workdir/zett.py"

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
    Bug("specials of two tokenizers by their order", TRANSPLANT, "if change.specials is not None:", "if False:", RULES),
    Bug("TransMI: the last source for the first", TRANSPLANT, "[-k for k in sources], mode", "[*sources], mode", RULES),
    Bug("TransMI: pieces as they are", TRANSPLANT, "[*map(change.transliterate or str, ids)]", "[*ids]", RULES),
    Bug("pieces without ids", TRANSPLANT, "if len(ids) else E.mean(0)", "if len(ids) else E[0]", RULES),
    Bug("a prediction of another piece", TRANSPLANT, "lambda i: change.predicted[i]", "lambda i: change.predicted[i - 1]", RULES),
    Bug("rows are read as they are", HYPER, "rescaling(source, 0.0, 1.0)", "rescaling(source, 0.0, 0.1)", RULES),
    Bug("kernels by outputs", HYPER, "/ np.sqrt(shape[0])", "/ np.sqrt(shape[1])", RULES),
    Bug("substrings by their uses", SAMPLED, "uses * (end - begin)", "uses", DRAWN),
    Bug("noise on the logarithm", SAMPLED, "q = scores / scores.sum() + noise", "q = scores / scores.sum() * np.exp(noise)", DRAWN),
    Bug("the worst substrings", SAMPLED, "np.argsort(-noised", "np.argsort(noised", DRAWN),
    Bug("the noise of every tokenizer is one", SAMPLED, "math.log(noise) + spread * rng.standard_normal()", "math.log(noise)", DRAWN),
    Bug("bytes are the best", SAMPLED, "math.log(scores.min()", "math.log(scores.max()", DRAWN),
    Bug("marks stay", "data/tokenizers/romanise.py", "if not unicodedata.combining(c)", "if c", DRAWN),
    Bug("nats of a batch", ZETT, "/ jnp.maximum(jnp.sum(batch[\"scored\"]), 1)", "", MOVED),
    Bug("start and end change places", ZETT, "[tokenizer.bos, tokenizer.eos, tokenizer.pad])", "[tokenizer.eos, tokenizer.bos, tokenizer.pad])", MOVED),
    Bug("the distance counts once", ZETT, "said = lexical * hyper", "said = hyper", MOVED),
    Bug("without the text", ZETT, "nats(rows, batch, key) + said", "said", MOVED),
    Bug("texts begin with their end", ZETT, "([size] * a)", "([size + 1] * a)", MOVED),
    Bug("the new tokenizer's own prediction is left", "experiments/workdir/transplanted.py", "predicted=rows.get(name)", "predicted=None", MOVED),
    Bug("specials of a pretrained model by place", "experiments/workdir/transplanted.py", "[(old_id, new_id) for", "[(new_id, old_id) for", MOVED),
    Bug("words are not kept apart", DYNAMIC, "or pieces[i][:1].isspace()", "", LEARNED),
    Bug("specials join words", DYNAMIC, "or not pieces[found[-1][-1]]", "", LEARNED),
    Bug("a merged token for its first part", DYNAMIC, "self._ids.get(unit, unit[0])", "unit[0]", LEARNED),
    Bug("merged ids begin at the tokenizer's", DYNAMIC, "size + k for k", "len(base.pieces) + k for k", LEARNED),
    Bug("merged tokens are written", "experiments/generation/decoder.py", 'getattr(tokenizer, "written", tokenizer.vocab_size)', "tokenizer.vocab_size", PROMPTS),
    Bug("merged rows are those of the first part", "experiments/generation/dynamic.py", "pieces_mean(E, unit)", "pieces_mean(E, unit[:1])", PROMPTS),
    Bug("pairs that come once", "experiments/generation/dynamic.py", "LEAST = 2", "LEAST = 1", PROMPTS),
    Bug("an interval of one tail", "data/tokenizers/measures.py", "[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]", ("tests/data/tokenizers/measures_test.py",)),
    Bug("a set's chance is that of the whole answer", "data/tasks/sorting.py", "math.log(math.comb(self.symbols, self.items)) / self.items", "math.log(math.comb(self.symbols, self.items))", ("tests/data/tasks_test.py",)),
    Bug("bytes that a text lacks are likely", "data/tokenizers/trainers.py", "least = min(log_p.values(), default=0.0) - 10", "least = min(log_p.values(), default=0.0) + 10", ("tests/data/tokenizers/trainers_test.py::test_bytes_that_a_unigram_text_lacks_are_the_least_likely_pieces",)),
    Bug("roots by how many words have them", "data/tokenizers/trainers.py", "roots[read or word] += count", "roots[read or word] += 1", ("tests/data/tokenizers/trainers_test.py::test_roots_of_a_morphology_stand_by_how_often_they_are_used",)),
)  # fmt: skip
