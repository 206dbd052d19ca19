"""What evaluations leave, foreign programs, and files that are not what their names say."""

from tests.planted import Bug

REPORT, BATCH = ("tests/experiments/report/evaluated_test.py",), ("tests/experiments/generation/batch_test.py",)
MEMORIES, START = ("tests/experiments/generation/memories_test.py",), ("tests/experiments/training/start_test.py",)
CHAT, TALKS = ("tests/data/chat_test.py",), ("tests/data/conversations_test.py",)

BUGS = (
    Bug("evaluations of the run before stay for the report of the next", "experiments/training/starting.py",
        "files.DRAFTS, files.MEMORIES, files.TEXTS,", "files.DRAFTS, files.TEXTS,", START),
    Bug("an exported model of the run before stays", "experiments/training/starting.py",
        '"profile", *files.EXPORTS.values(),', '"profile",', START),
    Bug("results of a policy are of any parameters", "experiments/generation/memories.py",
        "hashlib.sha256(states.marks(model.params))", "hashlib.sha256(b'')", MEMORIES),
    Bug("a line whose sums are numbers is added up", "experiments/generation/memories.py",
        "isinstance(row[name], list)", "True", MEMORIES),
    Bug("rows of a file of prompts are of any guide", "experiments/generation/batch.py",
        "made.update(name.encode() + states.marks(engine.weights[name]))", "made.update(name.encode())", BATCH),
    Bug("rows of a file of prompts are of any chat template", "experiments/generation/batch.py",
        "made.update(conversations.template_of(template).encode())", "made.update(template.encode())", BATCH),
    Bug("a guide that sees both sides of a token guides", "experiments/generation/beside.py",
        "if not programs[name].objective.causal:", "if False:", ("tests/experiments/generation/drafting_test.py",)),
    Bug("drafts: rows of padding are prompts", "experiments/generation/held_out.py",
        'np.asarray(batch["scored"]).any(1)', 'np.asarray(batch["scored"]).any(1) | True',
        ("tests/experiments/generation/drafting_test.py::test_prompts_are_the_same_held_out_rows_for_any_batch_size",)),
    Bug("a run that goes on asks for the dense one that it began as", "experiments/preflight/__init__.py",
        "    if begun:\n        return\n", "    yield from preflight_experts.start_problems(config)\n    if begun:\n        return\n",
        ("tests/experiments/workdir/upcycled_test.py",)),
    Bug("the template of a moved run is asked for where it lay", "experiments/workdir/vocabulary.py",
        'if about.get("template") and not os.path.exists(named) and', 'if about.get("template") and False and', START),
    Bug("the template of a workdir is read through a link", "experiments/workdir/vocabulary.py",
        "disk.is_file(kept) else named", "kept.is_file() else named", START),
    Bug("a report reads results behind a link", "experiments/report/kept.py",
        "disk.names(folder)", "__import__('os').listdir(folder) if folder.is_dir()", REPORT),
    Bug("a report counts the pairs of any number of experts", "experiments/report/routing.py",
        "if trace.shape[1] < 2 or experts > EXPERTS", "if trace.shape[1] < 2", REPORT),
    Bug("a table of loads has any size", "experiments/report/routing.py", "> CELLS", "> CELLS**9", REPORT),
    Bug("text that is named .parquet is text", "data/formats.py",
        "if named in (*_NAMES, *tables.PARQUET):", "if named in _NAMES:", ("tests/data/formats_test.py",)),
    Bug("an evaluation writes over a corpus", "experiments/training/other_texts.py",
        "or tuple(first) != FIELDS", 'or "text" not in first', ("tests/experiments/training/other_texts_test.py",)),
    Bug("a panic of the tokenizers' library is nobody's", "data/library_tokenizer.py",
        'if type(error).__name__ != "PanicException":', "if True:", TALKS),
    Bug("a template's memory has no limit that is said", "data/chat_worker.py",
        "    _limit_memory()\n", "", CHAT),
    Bug("a forked process shares its parent's renderer", "data/chat.py", "_worker(os.getpid())", "_worker(0)", CHAT),
    Bug("the answer to an interrupted question is the next one's", "data/chat.py",
        "                self._end(self._process)\n                raise\n", "                raise\n", CHAT),
    Bug("a finished run's last evaluation is the one before", "experiments/training/running.py",
        "evaluated < known == parts.config.train.steps", "False",
        ("tests/experiments/training/train_test.py::test_a_finished_run_does_nothing_again",)),
)  # fmt: skip
