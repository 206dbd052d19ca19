"""Writes .gguf files, whole or wrong on purpose: the format by its specification, version 3."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

ALPHABET = sorted(
    {chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))} | {chr(256 + k) for k in range(68)}
)
TOKENS = [*ALPHABET, "ab", "<|endoftext|>"]
FIELDS: dict[str, Any] = {
    "general.architecture": "llama", "general.alignment": 32, "llama.embedding_length": 16,
    "llama.attention.head_count": 4, "llama.block_count": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.feed_forward_length": 8, "llama.context_length": 64, "llama.rope.dimension_count": 4,
    "llama.rope.freq_base": 1e4, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 1) + [3],
    "tokenizer.ggml.eos_token_id": len(TOKENS) - 1, "tokenizer.ggml.bos_token_id": len(TOKENS) - 1,
    "tokenizer.ggml.pre": "gpt-2", "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (len(TOKENS), 16), "output_norm.weight": (16,), "rope_freqs.weight": (2,),
    **{f"blk.0.attn_{part}.weight": (16, 16) for part in ("q", "k", "v", "output")},
    **{f"blk.0.{part}_norm.weight": (16,) for part in ("attn", "ffn")},
    "blk.0.ffn_gate.weight": (8, 16), "blk.0.ffn_up.weight": (8, 16), "blk.0.ffn_down.weight": (16, 8),
}  # fmt: skip


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(of: Any) -> bytes:
    """A field: its type, then what it is."""
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<Iq", 11, of)
    if isinstance(of, float):
        return struct.pack("<Id", 12, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    kind = 12 if of and isinstance(of[0], float) else 11 if of and isinstance(of[0], int) else 8
    one = {12: lambda x: struct.pack("<d", x), 11: lambda x: struct.pack("<q", x), 8: text}[kind]
    return struct.pack("<IIQ", 9, kind, len(of)) + b"".join(map(one, of))


def write(
    fields: Mapping[str, Any] = FIELDS,
    tensors: Mapping[str, tuple[int, ...]] = TENSORS,
    *,
    types: Mapping[str, int] | None = None,
    offsets: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    data: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The bytes of a file whose tensors hold `data`, or ones; the other options change what its table says of one."""
    front = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    front += b"".join(text(name) + value(of) for name, of in fields.items())
    body = b""
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        at = (offsets or {}).get(name, len(body))
        front += text((names or {}).get(name, name)) + struct.pack("<I", len(shape))
        front += b"".join(struct.pack("<Q", size) for size in shape[::-1])
        front += struct.pack("<IQ", (types or {}).get(name, 0), at)
        body += data[name].tobytes() if data else struct.pack("<f", 1.0) * count
        body += bytes(-len(body) % 32)
    return front + bytes(-len(front) % 32) + body
