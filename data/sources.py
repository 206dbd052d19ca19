"""The table of sources by name: each is a plain function from a `Request` to documents.

A source gives either `Texts` (bytes, to be tokenized) or `Sequences` (symbols with a vocabulary of their own). A new
source is one function and one line in `SOURCES`.
"""

import hashlib
import pathlib
import sysconfig
from collections.abc import Callable, Iterator

import numpy as np

from data import files, folders, questions, tables
from data.documents import Document, LeftOut, Request, Sequences, Texts, stat_fingerprint

_TEST_FOLDERS = {"test", "tests", "idle_test"}
_RANDOM_LENGTH = 1022  # symbols per document of random tokens: 1024 with bos and eos
_RANDOM_SIZE = 1 << 22


def stdlib(request: Request) -> Texts:
    """The Python standard library's own source: every .py file that is UTF-8, without installed packages.

    `name="all"` keeps the library's test folders, which are left out otherwise. `max_files` takes a fixed sample.
    """
    if request.name not in ("", "all"):
        raise ValueError(f"name={request.name!r} means nothing to source='stdlib'; use '' or 'all' (with its tests).")
    root = pathlib.Path(request.path or sysconfig.get_paths()["stdlib"]).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"path={request.path!r} is no folder for source='stdlib'; use source='text' or path=''."
        )
    skip = folders.NOT_THE_LIBRARY | (set() if request.name == "all" else _TEST_FOLDERS)
    files = [f for f in folders.folder(root, skip, []) if f.name.endswith(".py")]
    if request.max_files:
        files = sorted(files, key=lambda f: hashlib.sha256(f.name.encode()).digest())[: request.max_files]
    if not files:
        raise FileNotFoundError(
            f"source='stdlib' reads .py files, and {str(root)!r} has none; other files: --config.data.source=text."
        )

    def documents(left_out: list[LeftOut]) -> Iterator[Document]:
        for name, _ in files:
            try:
                content = (root / name).read_bytes()
                content.decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # some files of the library test other encodings
            yield content, None

    size = sum(file.stat.st_size for file in files)
    return Texts(stat_fingerprint("stdlib", files), len(files), documents, size=size)


def text(request: Request) -> Texts:
    """Files: one, a folder at any depth, or a glob pattern, on a disk or in a store (gs://, s3://: by fsspec).

    A .txt, .md or .py file is one document; .jsonl, .csv, .tsv, .parquet and .arrow hold one a record, in `columns`
    (`text`); all but the last two also as .gz .bz2 .xz .zst. Of a folder its texts are read, or where there are none
    beside a README.md its tables; tables whose names say validation are held out, those of a test split are not read.
    A file named by itself or by a pattern may have any other name if it begins as UTF-8 text (see `data.formats`). Each
    file is read once, however many links lead to it. A file named by itself that is not text is refused; in a folder or
    a pattern it is left out.

    Errors: ValueError or FileNotFoundError with one sentence.
    """
    return files.texts(request, tables.text(request.columns), source="text")


def chat(request: Request) -> Texts:
    """Conversations and instructions in the files of `text`, a record each, of which only the answers are scored.

    Records have one of the forms of `data.conversations`; `columns` may name where the messages stand. Without a path
    they are questions about the Python standard library (`data.questions`).
    """
    if not request.path:
        return questions.texts(stdlib(Request(max_files=request.max_files)))
    return files.texts(request, tables.talk(request.columns), source="chat", form="chat")


def digits(request: Request) -> Sequences:
    """scikit-learn's 1,797 images of handwritten digits, 8 by 8, row by row: 64 grey levels 0..16, with labels 0..9."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return Sequences(images.astype(np.uint8), 17, labels=labels.astype(np.int32))


def random(request: Request) -> Sequences:
    """Uniformly random symbols in documents of 1,024 tokens, for benchmarks; `vocab_size` counts the specials."""
    if request.vocab_size < 5:
        raise ValueError(
            f"vocab_size={request.vocab_size} is too small for source='random'; use 5 or more, such as 256."
        )
    symbols = request.vocab_size - 3
    count = max(2, (request.size or _RANDOM_SIZE) // (_RANDOM_LENGTH + 2))
    dtype = np.uint8 if symbols <= 1 << 8 else np.uint16 if symbols <= 1 << 16 else np.uint32
    documents = np.random.default_rng(request.seed).integers(0, symbols, (count, _RANDOM_LENGTH), dtype)
    # Given the document so far, a symbol costs log(symbols) nats and the eos, whose place is fixed, nothing.
    return Sequences(documents, symbols, best_loss=float(np.log(symbols)) * _RANDOM_LENGTH / (_RANDOM_LENGTH + 1))


def tfds(request: Request) -> Texts:
    """A prepared TensorFlow Datasets text set, by name (see `data.tfds_source`)."""
    from data import tfds_source

    return tfds_source.texts(request)


SOURCES: dict[str, Callable[[Request], Texts | Sequences]] = {
    "stdlib": stdlib,
    "text": text,
    "chat": chat,
    "tfds": tfds,
    "digits": digits,
    "random": random,
}
