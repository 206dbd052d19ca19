"""Tensors that lie as blocks of four-bit floats with a scale each, MXFP4, as gpt-oss is released."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.families import Unreadable

ENDS = ("_blocks", "_scales")  # Of the two names that a packed tensor lies under.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # E2M1, by its bits.
BIAS = 127  # Of a scale: 2^(byte - 127).


def mxfp4(blocks: Any, scales: Any) -> np.ndarray:
    """Numbers v 2^(scale - 127): blocks `[..., G, 16]` of bytes, scales `[..., G]` of bytes: `[..., 32 G]` float32.

    A byte holds two numbers, the lower half first; v is the four-bit float E2M1. Source: OCP Microscaling Formats 1.0.
    """
    blocks, scales = np.asarray(blocks), np.asarray(scales)
    made = np.empty((*blocks.shape[:-1], 2 * blocks.shape[-1]), np.float32)
    made[..., 0::2], made[..., 1::2] = VALUES[blocks & 15], VALUES[blocks >> 4]
    np.ldexp(made, scales.astype(np.int32)[..., None] - BIAS, out=made)
    return made.reshape(*blocks.shape[:-2], -1)


def mxfp4_rows(raw: Any) -> np.ndarray:
    """The same numbers as they lie in .gguf files: bytes `[..., 17 G]`, of each 17 a scale and 16: `[..., 32 G]`.

    Byte j of the 16 holds the numbers j (its lower half) and j + 16. Source: block_mxfp4 of ggml.
    """
    blocks = np.asarray(raw).reshape(*np.shape(raw)[:-1], -1, 17)
    scales, halves = blocks[..., 0], blocks[..., 1:]
    made = VALUES[np.concatenate([halves & 15, halves >> 4], axis=-1)]
    np.ldexp(made, scales.astype(np.int32)[..., None] - BIAS, out=made)
    return made.reshape(*made.shape[:-2], -1)


class Packed:
    """The tensors of `source`, those in blocks whole: `[E, in, out]` of NAME_blocks `[E, out, in / 32, 16]` and scales.

    Errors: Unreadable where blocks and scales do not belong together.
    """

    def __init__(self, source: Any):
        self.where, self._source = source.where, source
        self._packed = {name.removesuffix(ENDS[0]) for name in source.shapes if name.endswith(ENDS[0])}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape
            for name, shape in source.shapes.items()
            if not name.endswith(ENDS) or name.rpartition("_")[0] not in self._packed
        } | {name: self._shape(name) for name in sorted(self._packed)}
        self._unpacked = functools.lru_cache(1)(self._unpack)  # Of a tensor all parts are read in turn.

    def _shape(self, name: str) -> tuple[int, ...]:
        blocks, scales = (self._source.shapes.get(f"{name}{end}", ()) for end in ENDS)
        if len(blocks) != 4 or blocks[-1] != 16 or scales != blocks[:-1] or name in self._source.shapes:
            raise Unreadable(
                f"{self.where}: blocks {blocks} and scales {scales} of {name!r} do not belong together; bring it back "
                "from a copy."
            )
        return blocks[0], 32 * blocks[2], blocks[1]

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as floats."""
        return self._unpacked(name) if name in self._packed else self._source.read(name)

    def _unpack(self, name: str) -> np.ndarray:
        return mxfp4(*(self._source.read(f"{name}{end}") for end in ENDS)).swapaxes(-1, -2)

    def bytes(self) -> int:
        """Of all tensors as they lie, packed."""
        return self._source.bytes()
