"""What is read: sources, tokenizers, packing, mixtures. `load` gives a corpus, `Loader` gives its batches by step."""

from data.corpus import TOKENIZERS, Corpus, Mixture, Tokens, load
from data.loader import PACKINGS, Loader
from data.sources import SOURCES, Request, Sequences, Texts
from data.tasks import TASKS
from data.tasks.loading import TaskLoader
from data.throughput import measure
from data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    StreamDecoder,
    SymbolTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

__all__ = [
    "PACKINGS",
    "SOURCES",
    "TASKS",
    "TOKENIZERS",
    "BPETokenizer",
    "ByteTokenizer",
    "Corpus",
    "Loader",
    "Mixture",
    "Request",
    "Sequences",
    "StreamDecoder",
    "SymbolTokenizer",
    "TaskLoader",
    "Texts",
    "Tokenizer",
    "Tokens",
    "load",
    "load_tokenizer",
    "measure",
    "train_bpe",
]
