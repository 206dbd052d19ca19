"""The tokenizer inside a .gguf file, as one of the tokenizers library."""

import json
import os
from collections.abc import Mapping
from typing import Any

from configs.families import Unreadable, gguf_header
from configs.families.fields import whole
from data.library_tokenizer import GPT2_PATTERN, GPT4_PATTERN, LibraryTokenizer, added_tokens, byte_level

# By `tokenizer.ggml.pre`: the patterns that cut a text into words.
PATTERNS = {
    "gpt-2": (GPT2_PATTERN,), "default": (GPT2_PATTERN,), "smollm": (r"\p{N}", GPT2_PATTERN),
    "llama-bpe": (GPT4_PATTERN,), "qwen2": (GPT4_PATTERN.replace("{1,3}", ""),),
}  # fmt: skip
_UNKNOWN, _CONTROL, _USER, _UNUSED = 2, 3, 4, 5
_BLANK = "\u2581"


def load(path: str | os.PathLike) -> LibraryTokenizer:
    """The tokenizer of the .gguf file at `path`. Errors: Unreadable."""
    header = gguf_header.read(path)
    with whole(path):
        return _made(header)


def _made(header: gguf_header.Header) -> LibraryTokenizer:
    path = header.path
    f = {key.removeprefix("tokenizer."): v for key, v in header.fields.items() if key.startswith("tokenizer.")}
    kind, tokens = f.get("ggml.model"), f.get("ggml.tokens")
    if not isinstance(tokens, list) or kind not in ("gpt2", "llama"):
        raise Unreadable(f"{path} has tokenizer.ggml.model={kind!r}, which is unknown; known are gpt2, llama.")
    types = f.get("ggml.token_type") or [1] * len(tokens)
    kinds = {
        name: {token: i for i, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ in of}
        for name, of in (("special", (_CONTROL, _UNUSED)), ("plain", (_USER,)))
    }
    definition = _bytes(f, tokens, kinds, path) if kind == "gpt2" else _blanks(f, tokens, types, kinds)
    starts = bool(f.get("ggml.add_bos_token", kind == "llama"))
    bos, eos = f.get("ggml.bos_token_id"), f.get("ggml.eos_token_id")
    if eos is None:
        raise Unreadable(f"{path} has no tokenizer.ggml.eos_token_id, without which no document ends.")
    if not starts or bos is None:
        bos, starts = kinds["special"].get("<|endoftext|>", eos), False
    pad = f.get("ggml.padding_token_id", eos)
    try:
        return LibraryTokenizer(definition, bos, eos, pad, starts, f.get("chat_template", ""))
    except ValueError as error:
        raise Unreadable(f"{path}: the tokenizer cannot be read ({error}).") from None


def _bytes(f: Mapping[str, Any], tokens: list[str], kinds: Mapping[str, Mapping[str, int]], path: Any) -> str:
    """A byte-level BPE."""
    name = f.get("ggml.pre", "default")
    if name not in PATTERNS:
        raise Unreadable(f"{path} has tokenizer.ggml.pre={name!r}, which is unknown; known are {', '.join(PATTERNS)}.")
    numbered, whole = {token: i for i, token in enumerate(tokens)}, name == "llama-bpe"
    made = byte_level(numbered, f["ggml.merges"], PATTERNS[name], {}, whole_words=whole)
    return json.dumps({**json.loads(made), "added_tokens": added_tokens(kinds["special"], kinds["plain"])})


def _blanks(f: Mapping[str, Any], tokens: list[str], types: list[int], kinds: Mapping[str, Mapping[str, int]]) -> str:
    """A BPE of SentencePiece: the better the score of a piece, the earlier its merge."""
    scores, numbered = f["ggml.scores"], {token: i for i, token in enumerate(tokens)}
    pairs = [
        (-scores[i], numbered[piece[:cut]], f"{piece[:cut]} {piece[cut:]}")
        for piece, i in numbered.items()
        if types[i] == 1
        for cut in range(1, len(piece))
        if piece[:cut] in numbered and piece[cut:] in numbered
    ]
    front = [{"type": "Prepend", "prepend": _BLANK}] if f.get("ggml.add_space_prefix", True) else []
    normal = [*front, {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}]
    back = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    unknown = next((token for token, type_ in zip(tokens, types, strict=True) if type_ == _UNKNOWN), None)
    model = {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": numbered,
        "merges": [merge.split(" ", 1) for *_, merge in sorted(pairs)],
    }  # fmt: skip
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(kinds["special"], kinds["plain"]),
        "normalizer": {"type": "Sequence", "normalizers": normal}, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": back}, "model": model,
    })  # fmt: skip
