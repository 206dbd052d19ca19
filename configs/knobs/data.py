"""Knobs of what is read."""

from configs.knobs.kinds import group, number, part, switch, text, texts, whole

data = group("What is read, and how rows are cut from it.")
data.source = part(
    "stdlib",
    "data:SOURCES",
    "stdlib, text, chat (answers are scored), tfds, digits, random; mixture of them; or task:NAME, of data.TASKS.",
    also=("mixture",),
)
data.path = text(
    "",
    "text, chat: a file, a folder, a glob, gs:// or s3:// (.txt .md .py .jsonl .csv, also .gz .bz2 .xz .zst; .parquet "
    ".arrow). tfds, stdlib: another folder than the usual.",
    of="data.source!=mixture|digits|random|task",
)
data.columns = texts(
    (),
    "text, chat: what is read of records (.jsonl, .csv, .parquet, .arrow); () = text, or the forms of conversations.",
    of="data.source=text|chat",
    before=(),
)
data.template = text(
    "",
    'chat: the template of conversations: "" = the tokenizer\'s own, chatml, or a .jinja file.',
    of="data.source=chat or generate.chat=*",
    before="",
)
data.name = text(
    "",
    "tfds: the dataset's name, or a folder that holds a prepared one. task: its settings, perhaps behind stages of "
    "training rows. stdlib: all = with tests.",
    of="data.source!=mixture|digits|random|text|chat",
)
data.components = texts((), "mixture: a tuple of dicts, each a source with its own `weight`.", of="data.source=mixture")
data.tokenizer = part(
    "bytes",
    "data:TOKENIZERS",
    "bytes, bpe or another trainer (learned from the corpus, offline, cached), or the path of a saved tokenizer.",
)
data.vocab_size = whole(0, "A trained tokenizer's size with specials. source=random: the ids drawn from.", least=0)
data.tokenizer_sample = whole(
    4 << 20,
    "Bytes of the training split that a tokenizer learns from; 0 = all.",
    least=0,
    of="data.tokenizer=bpe|unigram|lzw|lib|digits_left|digits_right|superbpe|supertokens|byte_bpe|morphology",
    before=4 << 20,
)
data.validation = number(
    0.05, "Share of the bytes held out, by documents, chosen by the hash of their content.", least=0, most=0.9
)
data.max_files = whole(
    0,
    "Reads at most this many files of the corpus; 0 = all.",
    least=0,
    smoke=40,
    of="data.source!=mixture|digits|random|task|tfds",
)
data.length = whole(256, "T: tokens a row.", least=1, smoke=32)
data.batch_size = whole(16, "B: rows in a GLOBAL batch, over all devices, processes and accumulation steps.", least=1)
data.packing = part(
    "stream",
    "data:PACKINGS",
    "stream (rows are windows of the document stream), first_fit (whole documents) or alone (a row has one document).",
)
data.given = whole(
    0, "Targets among the first so many tokens of a document (a row, without isolate) do not count.", least=0, before=0
)
data.isolate = switch(True, "Attention and positions stop at document borders (segment ids).")
data.cache_dir = text("~/.cache/tessera", "Tokenised corpora and tokenizers, keyed by content hash.")
