"""Tokenizers of pretrained models: any `tokenizer.json` of BPE or Unigram, rank files, and vocabularies of GGUF files.

Their ids are their own: starts, ends and other specials stand anywhere in the vocabulary. Text never produces a special
(`encode`), except where a chat template wrote it (`encode_marked`).
"""

import base64
import binascii
import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.tokenizer import ByteLevel, as_bytes, byte_alphabet, utf8_runs

_MOST = 1 << 24  # Ids: more is damage.
_BLANK = "\u2581"  # How SentencePiece writes a blank.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "<|im_start|>")
_ENDS = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>", "<|im_end|>")
_SEPARATOR = "<|endoftext|>"  # Between documents, of models whose texts have no start.
# How rank files cut text, by the number of their ranks: GPT-2, GPT-4, GPT-4o; all others as Llama 3.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_PATTERN = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
_PATTERNS = {50256: GPT2_PATTERN, 100256: GPT4_PATTERN, 199998: GPT4O_PATTERN}


class LibraryTokenizer(ByteLevel):
    """A tokenizer of the tokenizers library with the ids that a pretrained model was trained on.

    `token_bytes` of a special are 0. A tokenizer that puts a blank in front of a text counts that blank as a byte.

    Args:
      definition: the text of a `tokenizer.json`.
      bos: id of the start of a document; of models that know none, what stands between two documents.
      eos: id of the end of a document.
      pad: id of places without a token.
      add_bos: whether a prompt begins with bos.
      chat: the chat template, "" where there is none.

    Errors: ValueError where its pieces are not known bytes.
    """

    def __init__(self, definition: str, bos: int, eos: int, pad: int, add_bos: bool, chat: str):
        import tokenizers  # slow to import, and needed by few

        self.definition, self.add_bos, self.chat = definition, add_bos, chat
        try:
            self._library = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library knows one class of error
            raise ValueError("its definition is not one of the tokenizers library") from error
        self._library.no_truncation()
        self._library.no_padding()
        told = json.loads(definition)
        if told["model"].get("type") not in ("BPE", "Unigram"):
            raise ValueError(f"its model is {told['model'].get('type')}, whose text cannot be given back exactly")
        pieces = _pieces(self._library, told)
        for name, special in (("bos", bos), ("eos", eos), ("pad", pad)):
            if not 0 <= special < len(pieces):
                raise ValueError(f"its {name}={special} is outside its {len(pieces)} ids")
        self.specials = {token["content"]: token["id"] for token in told.get("added_tokens") or () if token["special"]}
        super().__init__("library", pieces, (bos, eos, pad))
        self.blank_first = _blank_first(told)
        self._single = {piece[0]: i for i, piece in reversed([*enumerate(pieces)]) if len(piece) == 1}

    def _state(self) -> dict[str, Any]:
        told = {"definition": self.definition, "bos": self.bos, "eos": self.eos, "pad": self.pad}
        return {"kind": "library", **told, "add_bos": self.add_bos, "chat": self.chat}

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return self.encode_batch([as_bytes(text)])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32."""
        self._library.encode_special_tokens = True  # As the text that it is.
        runs = [list(utf8_runs(text)) for text in texts]
        valid = [run for row in runs for run in row if isinstance(run, str)]
        with _cut():
            found = iter(self._library.encode_batch_fast(valid, add_special_tokens=False))
        return [
            np.concatenate(
                [np.empty(0, np.int32)]
                + [np.asarray(next(found).ids if isinstance(run, str) else self._bytes(run), np.int32) for run in row]
            ).astype(np.int32)
            for row in runs
        ]

    def encode_marked(self, text: str) -> np.ndarray:
        """Ids of a text in which the specials stand by their names, as a chat template writes them; `[n]` int32."""
        self._library.encode_special_tokens = False
        with _cut():
            return np.asarray(self._library.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_placed(self, text: str, *, specials: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, `[n]` int32, and the character of it at which each begins, `[n]` int64.

        specials: whether their names stand for them, as a chat template writes them.
        """
        self._library.encode_special_tokens = not specials
        with _cut():
            made = self._library.encode(text, add_special_tokens=False)
        return np.asarray(made.ids, np.int32), np.asarray([first for first, _ in made.offsets], np.int64)

    def _bytes(self, run: bytes) -> list[int]:
        """Ids of bytes that are not UTF-8: single bytes where the vocabulary has them, else U+FFFD."""
        if all(byte in self._single for byte in run):
            return [self._single[byte] for byte in run]
        return self._library.encode("\ufffd", add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of `ids`; the blank that `encode` puts in front of a text is taken away."""
        text = super().decode(ids)
        return text[1:] if self.blank_first and text.startswith(" ") else text

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The names of start and end, which chat templates ask for."""
        by_id = {i: name for name, i in self.specials.items()}
        return {"bos_token": by_id.get(self.bos, ""), "eos_token": by_id.get(self.eos, "")}


@contextlib.contextmanager
def _cut() -> Iterator[None]:
    """Where a pattern of the definition would try for ever how to cut a text, the library panics: no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer's definition cannot cut this text ({error}); use another tokenizer.") from None


def _pieces(library: Any, told: Mapping[str, Any]) -> list[bytes]:
    """The bytes of each id: of GPT-2's alphabet or of SentencePiece's, by what undoes them."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    if max(vocabulary.values(), default=0) >= _MOST:
        raise ValueError(f"it has the id {max(vocabulary.values())}, and no model has {_MOST}")
    for token in told.get("added_tokens") or ():
        if vocabulary.get(token["content"]) != token["id"]:
            raise ValueError(f"its added token {token['content']!r} has not the id {token['id']} in its vocabulary")
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    of_bytes = "ByteLevel" in json.dumps([told.get("decoder"), told.get("pre_tokenizer")])
    alphabet = byte_alphabet()
    for piece, i in vocabulary.items():
        if of_bytes and all(c in alphabet for c in piece):
            pieces[i] = bytes(alphabet[c] for c in piece)
        elif not of_bytes and (byte := _BYTE.fullmatch(piece)):
            pieces[i] = bytes([int(byte[1], 16)])
        else:
            pieces[i] = (piece if of_bytes else piece.replace(_BLANK, " ")).encode()
    for token in told.get("added_tokens") or ():
        pieces[token["id"]] = b"" if token["special"] else token["content"].encode()
    unknown = told["model"].get("unk_token") or told["model"].get("unk_id")
    unknown = vocabulary.get(unknown) if isinstance(unknown, str) else unknown
    if unknown is not None and not any(token["id"] == unknown for token in told.get("added_tokens") or ()):
        pieces[unknown] = b""
    return pieces


def _blank_first(told: Mapping[str, Any]) -> bool:
    """Whether a blank is put in front of a text."""
    parts = [told.get("normalizer") or {}, told.get("pre_tokenizer") or {}]
    parts += [each for part in parts for each in part.get("normalizers") or part.get("pretokenizers") or ()]
    return any(
        (part.get("type") == "Prepend" and part.get("prepend") == _BLANK)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        or (part.get("type") == "ByteLevel" and part.get("add_prefix_space"))
        for part in parts
    )


def from_folder(folder: pathlib.Path, definition: str) -> LibraryTokenizer:
    """The tokenizer of a `tokenizer.json`, its specials by `tokenizer_config.json` and `config.json` beside it.

    Errors: ValueError.
    """
    told = json.loads(definition)
    said, model = (_object(folder / name) for name in ("tokenizer_config.json", "config.json"))
    added = {token["content"]: token["id"] for token in told.get("added_tokens") or ()}
    vocabulary = told["model"].get("vocab")
    vocabulary = vocabulary if isinstance(vocabulary, dict) else {p[0]: i for i, p in enumerate(vocabulary or ())}
    known = vocabulary | added

    def special(name: str, usual: Sequence[str]) -> int | None:
        named = said.get(f"{name}_token")
        named = named.get("content") if isinstance(named, dict) else named
        numbered = model.get(f"{name}_token_id")
        numbered = numbered[0] if isinstance(numbered, list) and numbered else numbered
        if isinstance(named, str) and named in known:
            return known[named]
        if isinstance(numbered, int):
            return numbered
        return next((added[each] for each in usual if each in added), None) if name != "pad" else None

    chat = said.get("chat_template") or ""
    if isinstance(chat, list):
        chat = next((each["template"] for each in chat if each.get("name") == "default"), "")
    if (folder / "chat_template.jinja").is_file():
        chat = (folder / "chat_template.jinja").read_text("utf-8")
    ids = special("bos", _STARTS), special("eos", _ENDS), special("pad", ())
    starts = said.get("add_bos_token", _starts(definition, ids[0]))
    return _with_specials(definition, ids, starts=bool(starts), chat=chat, known=known)


def _starts(definition: str, bos: int | None) -> bool:
    """Whether the library puts bos in front of a text."""
    import tokenizers

    ids = tokenizers.Tokenizer.from_str(definition).encode("a").ids
    return bos is not None and ids[:1] == [bos]


def _with_specials(
    definition: str,
    ids: tuple[int | None, int | None, int | None],
    *,
    starts: bool,
    chat: str,
    known: Mapping[str, int],
) -> LibraryTokenizer:
    bos, eos, pad = ids
    if bos is None and eos is None:
        raise ValueError("neither it nor the files beside it say which id ends a document")
    eos = bos if eos is None else eos
    if not starts or bos is None:  # Documents have no start of their own: what ends one stands before the next.
        bos, starts = known.get(_SEPARATOR, eos), False
    return LibraryTokenizer(definition, bos, eos, eos if pad is None else pad, starts, chat)


def _object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is none."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError):
        raise ValueError(f"{path.name} beside it is damaged") from None
    return told if isinstance(told, dict) else {}


def byte_level(
    tokens: Mapping[str, int],
    merges: Sequence[str],
    patterns: Sequence[str],
    specials: Mapping[str, int],
    *,
    whole_words: bool = False,
) -> str:
    """The `tokenizer.json` of a byte-level BPE.

    Args:
      tokens: vocabulary in GPT-2's alphabet.
      merges: "a b", most frequent first; empty: the ids are ranks, and merges follow from them.
      patterns: regular expressions that cut a text into words, one after the other.
      specials: names of specials and their ids.
      whole_words: a word that is a piece is that piece, whatever its merges say (Llama 3; always with ranks).
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ", 1)) for merge in merges] if merges else _merges(tokens)
    made = tokenizers.Tokenizer(models.BPE(dict(tokens), pairs, ignore_merges=whole_words or not merges))
    cut = [pre_tokenizers.Split(tokenizers.Regex(each), "isolated") for each in patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    return json.dumps({**json.loads(made.to_str()), "added_tokens": added_tokens(specials)})


def added_tokens(specials: Mapping[str, int], plain: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """The entry `added_tokens` of a `tokenizer.json`: specials, and `plain` text that is always one piece."""
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    named = [(i, name, True) for name, i in specials.items()]
    named += [(i, name, False) for name, i in (plain or {}).items()]
    return [{"id": i, "content": name, **form, "special": special} for i, name, special in sorted(named)]


def _merges(tokens: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges of a vocabulary whose ids are ranks: every cut of a piece into two, by the rank of the piece."""
    found = [
        (rank, tokens[piece[:cut]], tokens[piece[cut:]], piece[:cut], piece[cut:])
        for piece, rank in tokens.items()
        for cut in range(1, len(piece))
        if piece[:cut] in tokens and piece[cut:] in tokens
    ]
    return [(a, b) for *_, a, b in sorted(found)]


def from_ranks(data: bytes) -> LibraryTokenizer:
    """A tokenizer from a rank file (a line is the base64 of a piece and its rank), as tiktoken has them.

    Such a file says neither how text is cut nor what the specials are: the pattern goes by the number of ranks, and
    <|endoftext|> is the id after the last one. Errors: ValueError.
    """
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    tokens = {}
    try:
        for line in data.splitlines():
            if line.strip():
                piece, rank = line.split()
                tokens["".join(letters[byte] for byte in base64.b64decode(piece, validate=True))] = int(rank)
    except (ValueError, binascii.Error):
        raise ValueError("a line is not the base64 of a piece and its rank") from None
    if sorted(tokens.values()) != list(range(len(tokens))) or len(tokens) < 256:
        raise ValueError("its ranks are not 0, 1, 2, ... of at least the 256 bytes")
    end = len(tokens)
    pattern = _PATTERNS.get(end, GPT4_PATTERN)
    definition = byte_level(tokens, (), [pattern], {_SEPARATOR: end})
    return LibraryTokenizer(definition, end, end, end, False, "")
