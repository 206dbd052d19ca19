"""Tokenizers from files: what `save` wrote, and the forms of other libraries, by what is in the file."""

import os
import pathlib

from data import messages, tokenizer
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
    if path.suffix in (".tiktoken", ".model"):
        return _of_bytes(path)
    text = tokenizer.read(path)
    told = tokenizer.parsed(text, str(path))
    if isinstance(told, dict) and "kind" not in told and isinstance(told.get("model"), dict):
        try:
            return from_folder(path.parent, text)
        except Exception as error:  # Damage may end any line of a reader, and the library knows one class of error.
            raise ValueError(tokenizer.not_saved(str(path), messages.why(error))) from error
    return tokenizer.of_state(told, str(path))


def _of_bytes(path: pathlib.Path) -> tokenizer.Tokenizer:
    try:
        return (from_ranks if path.suffix == ".tiktoken" else SentencePieceTokenizer.of)(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"tokenizer={str(path)!r} does not exist; use 'bytes', 'bpe' or a saved file."
        ) from None
    except OSError as error:
        raise ValueError(f"tokenizer={str(path)!r} cannot be read ({error.strerror}); use 'bytes' or 'bpe'.") from error
    except Exception as error:  # As above.
        raise ValueError(tokenizer.not_saved(str(path), messages.why(error))) from error
