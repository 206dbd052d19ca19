"""Data: sources, tokenizers, packing, mixtures. `load` gives a corpus, `Loader` gives its batches by step."""

from data.corpus import TOKENIZERS, known_tokenizer, listed_size, load
from data.documents import Request, Sequences, Texts
from data.loader import PACKINGS, Loader
from data.saved_tokenizers import load_tokenizer
from data.sources import SOURCES
from data.splits import Corpus, Mixture, Tokens
from data.tasks import TASKS
from data.throughput import measure
from data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    StreamDecoder,
    SymbolTokenizer,
    Tokenizer,
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
    "Texts",
    "Tokenizer",
    "Tokens",
    "known_tokenizer",
    "listed_size",
    "load",
    "load_tokenizer",
    "measure",
    "train_bpe",
]
