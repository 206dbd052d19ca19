"""Pretrained models, fine-tuning, files and conversations."""

from tests.planted import Bug

LORA = ("tests/models/values/lora_test.py",)
TALKS, FILES = ("tests/data/conversations_test.py",), ("tests/data/files_test.py",)
ENCODING, LOADING = ("tests/data/encoding_test.py",), ("tests/experiments/pretrained/loading_test.py",)
GGUF = ("tests/experiments/pretrained/gguf_writing_test.py",)

BUGS = (
    Bug("LoRA: the scale is left out of the merge", "models/lora.py",
        "(kernel.astype(wide) + scale * product)", "(kernel.astype(wide) + product)", LORA),
    Bug("LoRA: alpha / r where alpha / sqrt(r) is asked for", "models/lora.py",
        '"root": math.sqrt(rank)', '"root": rank', LORA),
    Bug("LoRA: B is drawn, so that the model changes at the start", "models/lora.py",
        "make(parameters.zeros, rngs, (o", "make(thin, rngs, (o", LORA),
    Bug("freezing: the first rule counts", "experiments/program/freezing.py",
        "found = not rule.startswith(BACK)", "found = found or not rule.startswith(BACK)", LORA),
    Bug("freezing: the average moves what is held", "experiments/program/__init__.py",
        'new |= {"ema": optimizers.keep_untrained(self.untrained, average, wide), **more}',
        'new |= {"ema": jax.tree.map(lambda a: a * 1.5, average), **more}', LORA),
    Bug("conversations: prompts are scored, too", "data/conversations.py",
        "scored |= (first >= begin) & (first < end)", "scored |= first < end", TALKS),
    Bug("conversations: what ends an answer is not scored", "data/conversations.py",
        "after = rendered(tokenizer, template, messages[: i + 1], answer=False)",
        "after = before + message['content']", TALKS),
    Bug("conversations: eos of a completion is not scored", "data/conversations.py",
        "np.ones(len(back), bool)", "np.zeros(len(back), bool)", TALKS),
    Bug("packing: scored one token too early", "data/packing.py",
        "target &= _scored(self.tokens, place + 1)", "target &= _scored(self.tokens, place)", TALKS),
    Bug("packing: a stream scores prompts", "data/packing.py",
        " & _scored(self.tokens, place[:, 1:])", "", TALKS),
    Bug("tokenising: a chunk is not checked when a build is gone on from", "data/encoding.py",
        'or line["crc"] != _crc(folder, line, before[-1] if before else {})', "or False", ENCODING),
    Bug("tokenising: a build is gone on from one document too late", "data/encoding.py",
        "first += len(chunk)", "first += len(chunk) + 1", ENCODING),
    Bug("tables: a test split is read", "data/files.py",
        "chosen = [file for file in of_tables if file not in tested]", "chosen = of_tables", FILES),
    Bug("tables: only the first batch of an Arrow file", "data/tables.py",
        "for i in range(reader.num_record_batches))", "for i in range(1))", FILES),
    Bug("tables: columns in one line", "data/tables.py",
        '"\\n\\n".join(filter(None, found))', '"\\n".join(filter(None, found))', FILES),
    Bug("loading: a tile too few", "experiments/pretrained/copying.py",
        "for j in range(0, x.shape[1], TILE):", "for j in range(0, x.shape[1] - TILE, TILE):", LOADING),
    Bug("loading: bfloat16 in the lower half", "experiments/pretrained/copying.py",
        "np.left_shift(x, np.uint32(16), out=out", "np.left_shift(x, np.uint32(15), out=out", LOADING),
    Bug("GGUF: norms of Gemma without their one", "experiments/pretrained/gguf_writing.py",
        "(1 + value.astype(np.float32))", "(0 + value.astype(np.float32))", GGUF),
    Bug("GGUF: rates multiplied where they are divided", "experiments/pretrained/gguf_writing.py",
        "(rope_scaling.rates(R, theta) / rope_scaling.llama3(R, theta, **told))",
        "(rope_scaling.llama3(R, theta, **told) / rope_scaling.rates(R, theta))", GGUF),
    Bug("GGUF: tensors lie where the one before ends", "experiments/pretrained/gguf_writing.py",
        "at += -(-value.nbytes // ALIGN) * ALIGN", "at += value.nbytes", GGUF),
)  # fmt: skip
