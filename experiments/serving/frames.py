"""Messages between the two processes: JSON behind its length, so that a reader never sees half of one."""

import asyncio
import json
import struct
from typing import Any, BinaryIO

_LENGTH = struct.Struct(">I")
LARGEST = 1 << 26
"""Bytes of a message at most: what is longer comes from no process of ours."""


def packed(message: Any) -> bytes:
    """A message as it goes over the pipe. Errors: ValueError for numbers that are not finite."""
    text = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text


def read(pipe: BinaryIO) -> Any:
    """The next message of a pipe, waiting for it; None at its end."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    text = pipe.read(_size(head))
    return json.loads(text) if len(text) == _size(head) else None


async def received(pipe: asyncio.StreamReader) -> Any:
    """The next message of a pipe; None at its end, also in the middle of a message."""
    try:
        head = await pipe.readexactly(_LENGTH.size)
        return json.loads(await pipe.readexactly(_size(head)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _size(head: bytes) -> int:
    (size,) = _LENGTH.unpack(head)
    if size > LARGEST:
        raise ValueError(f"a message of {size:,} bytes is longer than {LARGEST:,}: it is none of the server's.")
    return size
