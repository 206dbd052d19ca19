"""What stands in front of a GGUF file: its fields and where its tensors lie. Versions 2 and 3, little-endian.

Source: the GGUF specification of ggml (magic, counts, typed fields, tensor table, data aligned to `general.alignment`).
"""

import dataclasses
import itertools
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO

from configs.families.fields import Unreadable, whole

# Number of a tensor's type -> its name, numbers a block, bytes a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 26  # Elements of an array, bytes of a string, tensors: more is damage.
_SMALL = 1 << 16  # Bytes of a tensor that is read as a part of the config.


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `shape` outermost first, as numpy has it; `offset` from the start of the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The front of a GGUF file."""

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    def numbers(self, name: str) -> tuple[float, ...]:
        """A small F32 tensor. Errors: Unreadable."""
        tensor = self.tensors[name]
        if tensor.type or tensor.size > _SMALL:
            raise Unreadable(f"{self.path}: tensor {name!r} is no short row of F32, which it is in every model.")
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            return struct.unpack(f"<{tensor.size // 4}f", file.read(tensor.size))


def read(path: str | os.PathLike) -> Header:
    """The front of the file at `path`. Errors: Unreadable where it is damaged, cut off, or has a type not handled."""
    path = pathlib.Path(path).expanduser()
    try:
        with path.open("rb") as file, whole(path):
            try:
                return _header(file, path)
            except struct.error:
                raise Unreadable(f"{path} is cut off within its header; bring it back from a copy.") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror}); give a file that you may read.") from None


def _header(file: BinaryIO, path: pathlib.Path) -> Header:
    if file.read(4) != b"GGUF":
        raise Unreadable(f"{path} does not begin as a GGUF file; give one that does.")
    version, count, keys = _take(file, "I"), 0, 0
    if version not in (2, 3):
        raise Unreadable(f"{path} is GGUF version {version}; versions 2 and 3 are read (another byte order is not).")
    count, keys = _take(file, "Q"), _take(file, "Q")
    if count > _MOST or keys > _MOST:
        raise struct.error
    fields = {}
    for _ in range(keys):
        key = _string(file)
        fields[key] = _value(file, _take(file, "I"))
    told = []
    for _ in range(count):
        name, dims = _string(file), _take(file, "I")
        shape = tuple(_take(file, "Q") for _ in range(min(dims, 9)))[::-1]
        told.append((name, shape, _take(file, "I"), _take(file, "Q")))
    align = fields.get("general.alignment", 32)
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise struct.error
    start, end = -(-file.tell() // align) * align, os.fstat(file.fileno()).st_size
    tensors = {name: _placed(path, name, shape, type_, start + at, end) for name, shape, type_, at in told}
    if len(tensors) < len(told):
        raise Unreadable(f"{path} is damaged: it has two tensors of one name; bring it back from a copy.")
    places = sorted((tensor.offset, tensor.size, tensor.name) for tensor in tensors.values())
    for (at, size, name), (after, *_) in itertools.pairwise(places):
        if at + size > after:
            raise Unreadable(f"{path} is damaged: tensor {name!r} lies over another one; bring it back from a copy.")
    return Header(path, fields, tensors)


def _placed(path: pathlib.Path, name: str, shape: tuple[int, ...], type_: int, at: int, end: int) -> Tensor:
    if type_ not in TYPES:
        names = ", ".join(name for name, *_ in TYPES.values())
        raise Unreadable(f"{path}: tensor {name!r} has the type {type_}, which is not handled; handled are {names}.")
    _, block, size = TYPES[type_]
    total = math.prod(shape)
    if not shape or shape[-1] % block:
        raise Unreadable(
            f"{path} is damaged: tensor {name!r} of shape {shape} is no whole number of blocks of {block}."
        )
    if at + total // block * size > end:
        raise Unreadable(f"{path} is cut off: tensor {name!r} ends at byte {at + total // block * size} of {end}.")
    return Tensor(name, shape, type_, at, total // block * size)


def _take(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _string(file: BinaryIO) -> str:
    size = _take(file, "Q")
    if size > _MOST:
        raise struct.error
    data = file.read(size)
    if len(data) < size:
        raise struct.error
    return data.decode("utf-8", "surrogateescape")


def _value(file: BinaryIO, type_: int) -> Any:
    if type_ in _SCALARS:
        return _take(file, _SCALARS[type_])
    if type_ == _STRING:
        return _string(file)
    if type_ != _ARRAY:
        raise struct.error
    kind, size = _take(file, "I"), _take(file, "Q")
    if size > _MOST:
        raise struct.error
    if kind in _SCALARS:
        form = f"<{size}{_SCALARS[kind]}"
        return list(struct.unpack(form, file.read(struct.calcsize(form))))
    return [_value(file, kind) for _ in range(size)]
