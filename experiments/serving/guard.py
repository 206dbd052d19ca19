"""What a request must be before it is read: for this host, with the key, in JSON, and not too long."""

import asyncio
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from experiments.serving.wrong import Wrong

BODY, PATIENCE = 1 << 20, 30.0
"""Bytes of a body at most, and seconds in which it must have come."""


def check_host(request: Request, hosts: Sequence[str]) -> None:
    """Raises Wrong unless the request names one of `hosts` (none: any name will do).

    A page from elsewhere whose name was made to lead to this machine would else read what the server says.
    """
    named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if hosts and named not in hosts:
        raise Wrong(f"the host {named[:60]!r} is not served here; use {hosts[0]}.", status=403, code="wrong_host")


def check_key(request: Request, key: str) -> None:
    """Raises Wrong unless the request brings the key ("": there is none)."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if key and not hmac.compare_digest(given.encode("latin-1"), key.encode()):
        said = "is not the one that this server was started with" if given else "is missing"
        raise Wrong(
            f'the API key {said}; send "Authorization: Bearer KEY".',
            status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def body(request: Request) -> bytes:
    """All of the body. Errors: Wrong for one that is no JSON by its type, too long, or does not come to its end.

    Only `application/json`, which a page from elsewhere may not send: forms and plain text need no leave of ours.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Wrong(
            f"content-type is {kind[:60]!r}; send -H 'Content-Type: application/json'.", status=415, code="not_json"
        )
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > BODY:
        raise _too_long()
    try:
        return await asyncio.wait_for(_read(request), PATIENCE)
    except TimeoutError:
        raise Wrong(f"the body did not come in {PATIENCE:.0f} s; send all of it.", status=408) from None


async def _read(request: Request) -> bytes:
    made = bytearray()
    async for part in request.stream():
        made += part
        if len(made) > BODY:
            raise _too_long()
    return bytes(made)


def _too_long() -> Wrong:
    return Wrong(f"the body is longer than {BODY:,} bytes; send less.", status=413, code="too_long")
