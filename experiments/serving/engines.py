"""The HTTP process's end of the pipe: starts the engine's process, hands requests to it, and outlives it."""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import pickle
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from experiments.serving import frames
from experiments.serving.wrong import Wrong
from experiments.settings.errors import Refused

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENDED = "the engine's process ended while this text was under way; it is started again: ask once more."
RESTARTS, WITHIN = 3, 300.0
"""A process that ended so often within so many seconds is not started again."""
LEAVE = 10.0  # Seconds that the engine's process has to end by itself.


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one request under way: what the engine's process says of them, in the order in which it does."""

    ids: tuple[str, ...]
    heard: asyncio.Queue


class Engines:
    """The engine's process, and the requests in it.

    Args:
      load: what loads the model, in the other process: it is pickled.
      lanes: of the engine.
      queue: texts that may wait beside those in lanes.

    Attributes:
      facts: what the other process says of its model.
      problem: why there is no engine, in a sentence; "" while there is one.
      restarts: how often it was started again.
      busy: its last figures.
    """

    def __init__(self, load: Callable[[], Any], lanes: int, queue: int):
        self._spec, self.lanes, self.queue = base64.b64encode(pickle.dumps((load, lanes))) + b"\n", lanes, queue
        self.facts: dict[str, Any] = {}
        self.problem, self.restarts = "the engine is being started; ask again in some seconds.", 0
        self.busy: dict[str, Any] = {"running": 0, "waiting": 0, "drawn": 0, "cpu": 0.0}
        self.broken = asyncio.Event()  # The engine has ended, and is not started again.
        self._texts: dict[str, Texts] = {}
        self._numbers = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task | None = None
        self._stopping = False
        self._ends: deque[float] = deque(maxlen=64)  # when the last texts ended
        self._deaths: deque[float] = deque(maxlen=RESTARTS)

    @property
    def under_way(self) -> int:
        """Texts that are not finished."""
        return len(self._texts)

    @property
    def pid(self) -> int:
        """Of the engine's process; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Starts the process and waits for its model. Errors: Refused with its sentence."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "experiments.serving.worker", env=os.environ | {"PYTHONPATH": path},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(self._spec)
            await self._process.stdin.drain()
        first = await frames.received(self._process.stdout)
        if first is None or "refused" in first:
            await self._process.wait()
            code = self._process.returncode
            self._process = None
            raise Refused(first["refused"] if first else f"the engine's process ended with code {code} as it started.")
        self.facts, self.problem = first["ready"], ""
        self._listening = asyncio.create_task(self._listen(self._process))

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hands on what the process says; when it ends, ends its texts and starts it again."""
        while (message := await frames.received(process.stdout)) is not None:
            self.busy = message["busy"]
            for event in message["told"]:
                texts = self._texts.get(event["id"])
                if texts is None:
                    continue  # Its client has gone.
                if "end" in event or "wrong" in event:
                    del self._texts[event["id"]]
                    self._ends.append(time.monotonic())
                texts.heard.put_nowait(event)
        if self._stopping:
            return
        self.problem = "the engine's process has ended and is being started again; ask again in some seconds."
        self.busy |= {"running": 0, "waiting": 0}
        gone, self._texts = self._texts, {}
        for id, texts in gone.items():
            texts.heard.put_nowait({"id": id, "end": ENDED, "counts": [0, 0, 0]})
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await self._again(process.returncode)

    async def _again(self, code: int | None) -> None:
        """Starts the process once more, unless it has ended too often."""
        now = time.monotonic()
        self._deaths.append(now)
        often = len(self._deaths) == RESTARTS and now - self._deaths[0] < WITHIN
        try:
            if often:
                raise Refused(f"the engine's process ended {RESTARTS} times within {WITHIN:.0f} s, last with {code}.")
            print(f"the engine's process ended with code {code}; it is started again.", file=sys.stderr, flush=True)
            self.restarts += 1
            await self.start()
        except Refused as refused:
            if not self._stopping:
                self.problem = str(refused)
                self.broken.set()

    async def begin(self, messages: Sequence[Mapping[str, Any]]) -> Texts:
        """Hands texts to the engine, all or none. Errors: Wrong with 429 where the queue is full, 503 without engine.

        messages: "start" and the like without their ids.
        """
        if self.problem or self._stopping:
            wait = {"Retry-After": "5"}
            raise Wrong(self.problem or "the server is being stopped.", status=503, code="no_engine", headers=wait)
        room = self.lanes + self.queue
        if len(messages) > room:
            raise Wrong(
                f"{len(messages)} texts are more than the {room} that this server takes at once; ask for fewer."
            )
        if self.under_way + len(messages) > room:
            seconds = self.retry_after(self.under_way + len(messages) - room)
            raise Wrong(
                f"{self.under_way} texts are under way, of at most {room}; ask again in {seconds} s.",
                status=429, code="queue_full", headers={"Retry-After": str(seconds)},
            )  # fmt: skip
        texts = Texts(tuple(str(next(self._numbers)) for _ in messages), asyncio.Queue())
        self._texts |= dict.fromkeys(texts.ids, texts)
        try:
            await self._say(*({"id": id} | dict(message) for id, message in zip(texts.ids, messages, strict=True)))
        except BaseException:  # Its client has gone.
            await asyncio.shield(self.cancel(set(texts.ids)))
            raise
        return texts

    def retry_after(self, ends: int) -> int:
        """Seconds in which so many texts will have ended, as the last ones did: 1 to 60."""
        if len(self._ends) < 2:
            return 1
        each = (time.monotonic() - self._ends[0]) / len(self._ends)
        return min(60, max(1, math.ceil(ends * each)))

    async def events(self, texts: Texts) -> AsyncIterator[dict[str, Any]]:
        """What is said of texts, until all have ended; whoever leaves early frees their lanes."""
        left = set(texts.ids)
        try:
            while left:
                event = await texts.heard.get()
                if "end" in event or "wrong" in event:
                    left.discard(event["id"])
                yield event | {"choice": texts.ids.index(event["id"])}
        finally:
            await asyncio.shield(self.cancel(left))

    async def cancel(self, ids: set[str]) -> None:
        """Frees the lanes of texts that nobody waits for any more."""
        gone = ids & self._texts.keys()
        for id in gone:
            del self._texts[id]
        await self._say(*({"do": "cancel", "id": id} for id in gone))

    async def _say(self, *messages: Mapping[str, Any]) -> None:
        """A process that has just ended hears nothing; `_listen` ends its texts."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ConnectionError):
                process.stdin.writelines(map(frames.packed, messages))
                await process.stdin.drain()

    async def stop(self) -> None:
        """Ends the process: by itself, or after some seconds."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), LEAVE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
