"""What each layer still saw of a text when its last token was drawn: the text is read once more, and watched."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation.request import Request
from models.decoding import stream
from models.mixers.memory.shadow import shadowed, watched


class Watcher:
    """Watches texts of an engine whose memory forgets; compiled once for each of few lengths.

    The prompt is read as the engine reads it and what was drawn token by token, so that the memory chooses as it did.
    """

    def __init__(self, engine: Any):
        self.engine = engine
        self._walk = engine.decoder.program.jit(self._through)

    def __call__(self, request: Request) -> np.ndarray:
        """`[L, T]` float32, 0 to 1: the share of a layer's heads whose last query saw each token of prompt and text.

        The last query is that of the token before the last one drawn, which itself nothing has read. L: layers with a
        memory of tokens.
        """
        engine, n = self.engine, len(request.ids)
        again = dataclasses.replace(request, one=None, read=0, prefix=())
        engine._read(again, n)
        slots = engine.pool.slots(request.limit)
        p = engine.decoder.moved(engine.weights, again.one, np.zeros(1, np.int32), parts=engine._parts, capacity=slots)
        text, count = np.array(p.text), n + len(request.tokens)
        text[0, n:count] = request.tokens
        p = dataclasses.replace(p, text=text, length=np.asarray([count], np.int32))
        return np.asarray(self._walk(engine.weights, p))[:, :count]

    def _through(self, weights: Any, p: stream.Progress) -> jax.Array:
        """The tokens behind the prompt but the last, one by one."""
        engine, size = self.engine, p.text.shape[1]
        models = engine.decoder.models(weights)
        p = dataclasses.replace(p, state=p.state | {"layers": shadowed(p.state["layers"], size)})
        step = lambda p: stream.read(models, p, engine._parts, 1)  # noqa: E731
        p = jax.lax.while_loop(lambda p: p.unread[0] > 0, step, p)
        return jnp.stack([memory.seen[0] for memory in watched(p.state["layers"])])
