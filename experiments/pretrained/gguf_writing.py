"""A model of this house as one .gguf file, where one of the architectures that are read computes the same.

Numbers lie as they are, unquantised: float32, or bfloat16 for matrices of a model stored so. Norms, biases and routers
are always float32, as llama.cpp wants them.
"""

import dataclasses
import json
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from configs import knobs
from configs.families import Unreadable, outward
from data.library_tokenizer import added_tokens
from experiments import workdir as files
from experiments.pretrained import gguf_tokenizer, names, reading, writing
from experiments.settings.errors import ConfigError
from models import rope_scaling

ALIGN = 32
_FACTORS, _ROUTER = "rope_freqs.weight", "ffn_gate_inp.weight"
_NUMBERS = {"uint32": (4, "I"), "int32": (5, "i"), "float32": (6, "f"), "bool": (7, "?")}
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 30}
_FILES = {0: 0, 1: 1, 30: 32}  # general.file_type by the type of the matrices


def save(trained: Any, path: pathlib.Path) -> int:
    """Writes the model and its tokenizer to `path`; returns the count of parameters.

    trained: an `experiments.workdir.trained.Trained`; adapters are merged.
    Errors: ConfigError with one sentence where no architecture can say the model; nothing is written then.
    """
    trained = writing.merged(trained)
    spec = trained.program.spec
    model = files.plain(trained.config.model.to_dict()) | {"vocab_size": spec.V}
    flat = {name: np.asarray(value) for name, value in reading.flatten(trained.params).items()}
    model, flat, factors = as_gguf(model, flat)
    spec = dataclasses.replace(spec, norm_offset=False)
    made, failed = {}, None
    for name, tables in names.GGUF.items():
        try:
            made[name] = {key: laid(key, value) for key, value in writing.theirs(spec, flat, tables).items()} | factors
        except Unreadable as error:
            failed = error
    try:
        if not made:
            raise failed  # ty: ignore
        shapes = {name: {key: value.shape for key, value in tensors.items()} for name, tensors in made.items()}
        longest = spec.positions or trained.config.data.length
        family, fields = outward.gguf_fields_of(model, knobs.defaults()["model"], shapes, factors, longest=longest)
        fields = {"general.architecture": family, **fields, **tokenizer_fields(trained.tokenizer, spec.V)}
    except Unreadable as error:
        raise ConfigError([str(error)]) from None
    tensors = made[family]
    type_ = max(_TYPES[value.dtype] for value in tensors.values())
    fields |= {"general.file_type": _FILES[type_], "general.quantization_version": 2}
    files.write_file(path, file(fields, tensors))
    return sum(value.size for key, value in tensors.items() if key not in factors)


def as_gguf(model: Mapping[str, Any], flat: Mapping[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """(model, parameters, rope factors) as GGUF has them: norms multiply by w, Llama 3's rates are their divisors."""
    model, flat, factors = dict(model), dict(flat), {}
    if model["norm_offset"]:
        model["norm_offset"] = False
        for path, value in flat.items():
            if path.endswith("norm/scale"):
                flat[path] = (1 + value.astype(np.float32)).astype(value.dtype)
    attention = dict(model["attention"])
    scaling = attention["rope_scaling"]
    if scaling["kind"] == "llama3":
        H = model["head_dim"] or model["width"] // model["num_heads"]
        R, theta = int(H * attention["rope_fraction"]) // 2 * 2, attention["rope_theta"]
        told = {name: scaling[name] for name in ("factor", "low", "high", "original")}
        by = (rope_scaling.rates(R, theta) / rope_scaling.llama3(R, theta, **told)).astype(np.float32)
        numbers, factors = tuple(repr(float(number)) for number in by), {_FACTORS: by}
        attention["rope_scaling"] = scaling | {
            "kind": "longrope", "factor": 1.0, "attention_factor": 1.0, "short_factors": numbers,
            "long_factors": numbers,
        }  # fmt: skip
        model["attention"] = attention
    elif scaling["kind"] == "longrope" and scaling["short_factors"] == scaling["long_factors"]:
        factors = {_FACTORS: np.asarray([float(number) for number in scaling["short_factors"]], np.float32)}
    return model, flat, factors


def laid(name: str, value: np.ndarray) -> np.ndarray:
    """The tensor `name` in the type that it has in the file."""
    wide = value.ndim < 2 or value.dtype not in _TYPES or name.endswith((".bias", _ROUTER))
    return np.ascontiguousarray(value, np.float32 if wide else value.dtype)


def file(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The bytes of a GGUF file, version 3, in parts."""
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    out += [_string(key) + _value(value) for key, value in fields.items()]
    at = 0
    for name, value in tensors.items():
        shape = value.shape[::-1]
        out.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _TYPES[value.dtype], at))
        at += -(-value.nbytes // ALIGN) * ALIGN
    front = b"".join(out)
    yield front + bytes(-len(front) % ALIGN)
    for value in tensors.values():
        yield memoryview(value.reshape(-1).view(np.uint8))
        yield bytes(-value.nbytes % ALIGN)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        number, form = _NUMBERS["float32" if value and isinstance(value[0], float) else "int32"]
        return struct.pack(f"<IIQ{len(value)}{form}", 9, number, len(value), *value)
    kind = "bool" if isinstance(value, bool) else "uint32" if isinstance(value, int) else "float32"
    number, form = _NUMBERS[kind]
    return struct.pack(f"<I{form}", number, value)


def tokenizer_fields(tokenizer: Any, rows: int) -> dict[str, Any]:
    """The fields `tokenizer.*` of a tokenizer of the tokenizers library; of any other, that there is none.

    rows: of the embedding; those beyond the tokenizer's ids are tokens that no text has.

    Errors: Unreadable where it cuts text in a way that has no name in GGUF.
    """
    definition = getattr(tokenizer, "definition", None)
    if not definition:
        return {"tokenizer.ggml.model": "none"}
    told, specials = json.loads(definition), getattr(tokenizer, "specials", None)
    if specials is None:  # One of ours: the specials stand behind its pieces.
        told["added_tokens"] = added_tokens({f"<|{n}|>": getattr(tokenizer, n) for n in ("bos", "eos", "pad")})
    model, added = told["model"], told.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise Unreadable("a tokenizer that is no BPE has no form in GGUF here; export with --format=hf.")
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [5] * len(tokens)
    for piece, i in model["vocab"].items():
        tokens[i], types[i] = piece, 6 if model.get("byte_fallback") and _is_byte(piece) else 1
    for token in added:
        tokens[token["id"]], types[token["id"]] = token["content"], 3 if token["special"] else 4
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = {f"tokenizer.ggml.{name}_token_id": getattr(tokenizer, key)
           for name, key in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"))}  # fmt: skip
    found = {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, **ids,
        "tokenizer.ggml.add_bos_token": bool(getattr(tokenizer, "add_bos", True)),
    }  # fmt: skip
    if chat := getattr(tokenizer, "chat", ""):
        found["tokenizer.chat_template"] = chat
    if model.get("byte_fallback"):
        return {"tokenizer.ggml.model": "llama", **found, **_scores(tokens, merges, model, told)}
    pre = next((name for name, cut in gguf_tokenizer.PATTERNS.items() if _cuts(told) == list(cut)), None)
    if pre is None:
        raise Unreadable("the tokenizer cuts words by a rule that has no name in GGUF here; export with --format=hf.")
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, **found, "tokenizer.ggml.merges": merges}


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _scores(tokens: list[str], merges: list[str], model: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Scores that order merges as they are ordered: the earlier the first merge to a piece, the better."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault("".join(merge.split(" ", 1)), i)
    scores = [-float(rank.get(piece, len(merges))) for piece in tokens]
    types: dict[str, Any] = {"tokenizer.ggml.scores": scores}
    normal = told.get("normalizer") or {}
    parts = normal.get("normalizers") or [normal]
    types["tokenizer.ggml.add_space_prefix"] = any(part.get("type") == "Prepend" for part in parts)
    if model.get("unk_token"):
        types["tokenizer.ggml.unknown_token_id"] = model["vocab"][model["unk_token"]]
    return types


def _cuts(told: Mapping[str, Any]) -> list[str]:
    """The patterns by which a text is cut into words, as `gguf_tokenizer.PATTERNS` has them."""
    part = told.get("pre_tokenizer") or {}
    parts, found = part.get("pretokenizers") or [part], []
    for each in parts:
        if each.get("type") == "Split" and each.get("behavior") in ("Isolated", "isolated"):
            found.append((each.get("pattern") or {}).get("Regex", ""))
        elif each.get("type") == "Digits" and each.get("individual_digits"):
            found.append(r"\p{N}")
        elif each.get("type") == "ByteLevel" and each.get("use_regex", True):
            found.append(gguf_tokenizer.GPT2_PATTERN)
        elif each.get("type") != "ByteLevel":
            return []
    return found
