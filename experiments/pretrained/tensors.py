"""Tensors of foreign files by name, read lazily: only what is asked for leaves the disk. No pickle is ever opened."""

import functools
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol

import ml_dtypes
import numpy as np

from configs.families import Unreadable, gguf_header, kind
from configs.families.fields import whole
from experiments.pretrained import packed

# Of safetensors: name in the header -> type. What is not here is refused.
TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
BYTES = {"U8": np.uint8}  # Of packed tensors alone.
_HEADER = 100 << 20  # Bytes of a header, at most: the library's own limit.
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Tensors(Protocol):
    """Tensors of a model by name."""

    shapes: Mapping[str, tuple[int, ...]]
    where: str

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as floats: mapped from the disk where it lies as it is, else computed."""

    def bytes(self) -> int:
        """Of all tensors as they lie."""


class Safetensors:
    """One .safetensors file: 8 bytes with the size of a JSON header, the header, the numbers. Errors: Unreadable."""

    def __init__(self, path: pathlib.Path):
        self.where, self._path = str(path), path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or not 2 <= length <= min(size - 8, _HEADER):
                    raise Unreadable(f"{path} is damaged or cut off within its header; bring it back from a copy.")
                told = json.loads(file.read(length))
        except OSError as error:
            raise Unreadable(f"{path} cannot be read ({error.strerror}); bring it back from a copy.") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(f"{path} is damaged: its header is not JSON; bring it back from a copy.") from None
        if not isinstance(told, dict):
            raise Unreadable(f"{path} is damaged: its header is no object; bring it back from a copy.")
        told.pop("__metadata__", None)
        self._told = {name: self._checked(name, entry, size - 8 - length) for name, entry in told.items()}
        self.shapes, self._start = {name: shape for name, (_, shape, _) in self._told.items()}, 8 + length
        self._check_places(size - 8 - length)

    def _check_places(self, room: int) -> None:
        """Raises Unreadable unless every byte belongs to one tensor, as the format asks."""
        ends = sorted((first, first + math.prod(shape) * dtype.itemsize) for dtype, shape, first in self._told.values())
        for (_, last), (first, _) in itertools.pairwise([(0, 0), *ends, (room, room)]):
            if first != last:
                how = "lie over each other" if first < last else "leave bytes between them"
                raise Unreadable(f"{self.where} is damaged: its tensors {how}; bring it back from a copy.")

    def _checked(self, name: str, entry: dict, room: int) -> tuple[np.dtype, tuple[int, ...], int]:
        """(type, shape, first byte) of a tensor, all of it within the file."""
        try:
            type_, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, first, last))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise Unreadable(
                f"{self.where} is damaged: its header says no place for {name!r}; bring it back from a copy."
            )
        types = TYPES | BYTES if name.endswith(packed.ENDS) else TYPES
        if not isinstance(type_, str) or type_ not in types:
            raise Unreadable(
                f"{self.where}: tensor {name!r} has the type {type_!r}, which is not handled; handled are "
                f"{', '.join(TYPES)}."
            )
        dtype = np.dtype(types[type_])
        if last - first != math.prod(shape) * dtype.itemsize:
            raise Unreadable(f"{self.where} is damaged: tensor {name!r} has another size than its shape {shape} says.")
        if last > room:
            raise Unreadable(f"{self.where} is cut off: tensor {name!r} ends {last - room} bytes behind its end.")
        return dtype, shape, first

    def read(self, name: str) -> np.ndarray:
        dtype, shape, first = self._told[name]
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self._path, dtype, "r", self._start + first, shape)

    def bytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape, _ in self._told.values())


class Shards:
    """Several .safetensors files as one, by the index or as they lie in the folder. Errors: Unreadable."""

    def __init__(self, folder: pathlib.Path):
        self.where = str(folder)
        if (folder / INDEX).is_file():
            try:
                by_name = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
                names = sorted(set(by_name.values()))
                outside = [name for name in names if pathlib.PurePath(name).name != name]
            except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
                raise Unreadable(f"{folder / INDEX} is damaged; bring it back from a copy.") from None
            if outside:
                raise Unreadable(f"{folder / INDEX} names {outside[0]!r}, which is no file of its folder.")
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise Unreadable(f"{folder} lacks {missing[0]!r}, one of {len(names)} files that {INDEX} names.")
        else:
            names = [path.name for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
            by_name, names = {}, [SINGLE] if SINGLE in names else names
            if not names:
                pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
                why = ": pickled weights are never opened, save them as safetensors" if pickled else ""
                raise Unreadable(f"{folder} holds no *.safetensors{why}.")
        files = {name: Safetensors(folder / name) for name in names}
        self._by_name: dict[str, Safetensors] = {}
        for place, file in files.items():
            for name in file.shapes:
                if by_name.get(name, place) != place:
                    continue  # Another file has the one that counts.
                if name in self._by_name:
                    raise Unreadable(f"{folder} has the tensor {name!r} in two files; leave one model in the folder.")
                self._by_name[name] = file
        if lost := [name for name in by_name if name not in self._by_name]:
            raise Unreadable(f"{folder} lacks the tensor {lost[0]!r}, which {INDEX} names.")
        self.shapes = {name: file.shapes[name] for name, file in self._by_name.items()}
        self._files = [*files.values()]

    def read(self, name: str) -> np.ndarray:
        return self._by_name[name].read(name)

    def bytes(self) -> int:
        return sum(file.bytes() for file in self._files)


class Gguf:
    """One .gguf file; blocks of few bits become float32 by the `gguf` package. Errors: Unreadable."""

    def __init__(self, path: pathlib.Path):
        self.where, self._header = str(path), gguf_header.read(path)
        self.shapes = {name: tensor.shape for name, tensor in self._header.tensors.items()}
        self._dequantised = functools.lru_cache(1)(self._dequantise)  # Of a tensor all parts are read in turn.
        if any(tensor.type not in (*PLAIN, MXFP4) for tensor in self._header.tensors.values()):
            _package()

    def read(self, name: str) -> np.ndarray:
        tensor = self._header.tensors[name]
        if tensor.type in PLAIN:
            return np.memmap(self._header.path, PLAIN[tensor.type], "r", tensor.offset, tensor.shape)
        return self._dequantised(name)

    def _dequantise(self, name: str) -> np.ndarray:
        tensor = self._header.tensors[name]
        raw = np.memmap(self._header.path, np.uint8, "r", tensor.offset, (tensor.size,))
        rows = raw.reshape(*tensor.shape[:-1], -1)
        if tensor.type == MXFP4:
            return packed.mxfp4_rows(rows)
        package = _package()
        return package.quants.dequantize(rows, package.GGMLQuantizationType(tensor.type)).reshape(tensor.shape)

    def bytes(self) -> int:
        return sum(tensor.size for tensor in self._header.tensors.values())


PLAIN = {0: np.float32, 1: np.float16, 30: ml_dtypes.bfloat16}  # Types of GGUF that are numbers as they lie.
MXFP4 = 39


def _package():
    """The `gguf` package, which knows the formats of few bits."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise Unreadable(
            "this .gguf file needs the package gguf; pip install -r requirements-pretrained.txt."
        ) from None
    return gguf


def open_tensors(path: str | os.PathLike) -> Tensors:
    """The tensors at `path`, a folder or a .gguf file. Errors: Unreadable."""
    path = pathlib.Path(path).expanduser()
    with whole(path):
        if kind(path) == "gguf":
            return Gguf(path)
        found = Shards(path)
        return packed.Packed(found) if any(name.endswith(packed.ENDS[0]) for name in found.shapes) else found
