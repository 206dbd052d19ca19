"""Tokenizers from files: what `save` wrote, and the forms of other libraries, by what is in the file."""

import json
import os
import pathlib

from data import tokenizer
from data.library_tokenizer import from_folder, from_ranks
from data.sentencepiece_tokenizer import SentencePieceTokenizer


def load_tokenizer(path: str | os.PathLike) -> tokenizer.Tokenizer:
    """The tokenizer at `path`: what `save` wrote, a `tokenizer.json` of the tokenizers library or a folder with one, a
    SentencePiece `.model`, or a file of ranks (`.tiktoken`).

    Errors: FileNotFoundError where no file is; ValueError with one sentence where it cannot be read, is damaged, or is
    not a tokenizer.
    """
    path = pathlib.Path(path).expanduser()
    if (path / "config.json").is_file() and (path / "tokenizer.json").is_file():  # The folder of a pretrained model.
        path = path / "tokenizer.json"
    try:
        if path.suffix == ".tiktoken":
            return from_ranks(path.read_bytes())
        if path.suffix == ".model":
            return SentencePieceTokenizer.of(path.read_bytes())
        if (definition := _of_the_library(path)) is not None:
            return from_folder(path.parent, definition)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(
                f"tokenizer={str(path)!r} does not exist; use 'bytes', 'bpe' or a saved file."
            ) from None
        raise ValueError(f"tokenizer={str(path)!r} cannot be read ({error.strerror}); use 'bytes' or 'bpe'.") from error
    except ValueError as error:
        raise ValueError(_not_saved(str(path), str(error))) from error
    return tokenizer.load_tokenizer(path)


def _of_the_library(path: pathlib.Path) -> str | None:
    """The text of a file that is a `tokenizer.json` of the tokenizers library, else None."""
    try:
        text = path.read_text("utf-8")
        told = json.loads(text)
    except (OSError, ValueError, RecursionError):  # What is wrong with it is told by who reads saved ones.
        return None
    return text if isinstance(told, dict) and "kind" not in told and isinstance(told.get("model"), dict) else None


def _not_saved(name: str, why: str) -> str:
    return f"tokenizer={name!r} is not a saved tokenizer ({why}); use 'bytes' or 'bpe'."
