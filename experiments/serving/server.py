"""`--mode=serve`: a socket, the engine's process, and the HTTP server until somebody ends it."""

import asyncio
import contextlib
import dataclasses
import importlib.util
import ipaddress
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from experiments.settings.errors import Refused

NEEDED = ("starlette", "uvicorn")
KEY = "TESSERA_API_KEY"
DRAIN = 120  # Seconds that texts under way have when the server is to end.
BACKLOG = 2048  # Connections that wait to be taken.


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a model is served.

    Attributes:
      name: of the model.
      host: where the server listens.
      port: 0: any that is free.
      lanes: texts that are under way together.
      queue: texts that may wait beside them.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    lanes: int = 8
    queue: int = 64

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine reaches it."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names under which requests may come; none: any."""
        return (self.host, "127.0.0.1", "localhost", "::1") if self.loopback else ()

    def url(self, port: int) -> str:
        """Where it is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}"


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def check(serving: Serving) -> None:
    """Raises Refused where a number cannot be, or what serves HTTP is not installed."""
    for name, value, least, most in (("port", serving.port, 0, 65535), ("lanes", serving.lanes, 1, 4096)):
        if not least <= value <= most:
            example = {"port": 8000, "lanes": 8}[name]
            raise Refused(f"--{name}={value} must be from {least} to {most}, e.g. --{name}={example}.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"--mode=serve needs {' and '.join(missing)}; pip install -r requirements-serve.txt.")


def model_name(text: str) -> str:
    """The name of a model whose workdir is called `text`: what stands in no address by itself is left out."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "model"


def serve(load: Callable[[], Any], serving: Serving) -> None:
    """Serves the model that `load` gives, until SIGTERM or ctrl-C: then texts under way are finished.

    load: is pickled and called in the engine's process.
    Errors: Refused in a sentence, also where the engine's process ends too often.
    """
    check(serving)
    key = os.environ.get(KEY, "")
    with contextlib.closing(listening(serving)) as place:
        asyncio.run(_serve(load, serving, place, key))


def listening(serving: Serving) -> socket.socket:
    """The socket. Errors: Refused where the place is taken or is none of this machine's."""
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    # asyncio sends at once only over what calls itself TCP; else each answer but the first waits 40 ms for a receipt.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((serving.host, serving.port))
        made.listen(BACKLOG)  # Before anybody is told where: who calls at once waits, and is not refused.
    except OSError as error:
        made.close()
        reason = (error.strerror or str(error)).lower()
        raise Refused(
            f"--host={serving.host} --port={serving.port} cannot be listened at: {reason}; use e.g. --port=0 for any "
            "port that is free."
        ) from None
    made.setblocking(False)
    return made


async def _serve(load: Callable[[], Any], serving: Serving, place: socket.socket, key: str) -> None:
    import uvicorn

    from experiments.serving.app import App
    from experiments.serving.engines import Engines

    class Server(uvicorn.Server):
        """Without signal handlers of its own: it would end by the signal that it was sent, and not with code 0."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Nothing is captured."""
            yield

    engines = Engines(load, serving.lanes, serving.queue)
    app = App(engines, serving.name, key=key, hosts=serving.hosts)
    config = uvicorn.Config(
        app.starlette(), http="h11", loop="asyncio", ws="none", lifespan="off", log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=DRAIN, limit_concurrency=1024,
    )  # fmt: skip
    server = Server(config)
    loop = asyncio.get_running_loop()
    starting = asyncio.create_task(engines.start())

    def end() -> None:
        server.force_exit = server.should_exit  # The second signal waits for nobody.
        server.should_exit = True
        starting.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, end)
    ending = asyncio.create_task(_end_if_broken(engines, server))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await starting
            _say(serving, place.getsockname()[1], key)
            await server.serve(sockets=[place])
    finally:
        ending.cancel()
        await engines.stop()
    if engines.broken.is_set():
        raise Refused(engines.problem)


async def _end_if_broken(engines: Any, server: Any) -> None:
    """Ends the server where there will be no engine any more."""
    await engines.broken.wait()
    server.should_exit = True


def _say(serving: Serving, port: int, key: str) -> None:
    """Where the server is, and who can reach it."""
    if not serving.loopback:
        who = f"whoever reaches this machine and has the key of {KEY}" if key else "anybody who reaches this machine"
        advice = "" if key else f"; set {KEY} to ask for a key, or leave --host away"
        print(f"warning: --host={serving.host} lets {who} use this model, over plain HTTP{advice}.", file=sys.stderr)
    print(
        f"{serving.name} is served at {serving.url(port)} (a page there; /v1 for clients); ctrl-C ends it.", flush=True
    )
