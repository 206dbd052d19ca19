"""A headless Chromium, spoken to over two pipes as its debugger has it: nothing else need be installed."""

import base64
import contextlib
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)


class Page:
    """One page of a browser."""

    def __init__(self, reading: int, writing: int):
        self._reading, self._writing, self._held, self._count, self._session = reading, writing, b"", 0, None
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.tell("Page.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the debugger's protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            self._held += os.read(self._reading, 1 << 16)
        line, self._held = self._held.split(b"\0", 1)
        return json.loads(line)

    def size(self, width: int, height: int) -> None:
        """The window's size; narrow ones are phones."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def go(self, url: str) -> None:
        """Opens an address and waits until it is there."""
        self.tell("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, code: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        made = self.tell("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        return made["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.tell("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: pathlib.Path) -> None:
        """Writes what is to be seen."""
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[Page]:
    """A browser whose files lie in `folder`."""
    theirs, writing = os.pipe()
    reading, ours = os.pipe()

    command = f'exec chromium "$@" 3<&{theirs} 4>&{ours}'
    process = subprocess.Popen(
        ["bash", "-c", command, "chromium", *FLAGS.split(), f"--user-data-dir={folder}"],
        pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    try:
        yield Page(reading, writing)
    finally:
        os.close(writing)
        process.terminate()
        process.wait(30)
        os.close(reading)
