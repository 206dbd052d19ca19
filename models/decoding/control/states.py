"""Controls of what the model reads: SwiReasoning's soft inputs, and in-context vectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, Feed, steering, thinking
from models.decoding.drafts import Seen, Tree


@dataclasses.dataclass(frozen=True)
class Swi(Control):
    """SwiReasoning: soft inputs while the entropy falls, words where it rises; `thinking` states the rules.

    The entropy, and the law whose expected embedding is read, are of the logits as they come to this entry: named first
    they are the model's own. `steps` is what the blends count by; 0 is off for the row.
    """

    dials = ("swi.steps", "swi.window")
    own = ("begin", "end")
    feeds = True
    alone = True

    steps: int = 0
    window: int = 512
    alpha: float = 1.0
    beta: float = 0.7
    begin: str = "<think>"
    end: str = "</think>"

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`. `at` counts the row's steps."""
        state = thinking.begin(jnp.zeros((batch,)))._asdict()
        spec = models["model"].spec
        return state | {
            "at": jnp.zeros((batch,), jnp.int32),
            "marks": jnp.zeros((batch, 2), jnp.int32),
            "vector": jnp.zeros((batch, spec.D), spec.dtype),
            "on": jnp.zeros((batch,), bool),
            "turned": jnp.zeros((batch,), jnp.int32),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`: the tokens that mark the beginning and the end of thinking."""
        marks = []
        for name in ("begin", "end"):
            ids = tokenizer.encode(options["swi"][name])
            if not len(ids):
                raise ValueError(f"generate.swi.{name} is empty; use the text of a token, e.g. '<think>'.")
            marks.append(ids[0])
        return {"marks": np.asarray(marks, np.int32)}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return logits, (jax.nn.softmax(logits[:, 0], axis=-1), p.dials["swi.steps"], p.dials["swi.window"])

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        (law, steps, window), model = made, models["model"]
        live = (seen.count > 0) & (steps > 0)
        before = thinking.Thinking(**{name: side[name] for name in thinking.Thinking._fields})
        ends, H = seen.token[:, 0] == side["marks"][:, 1], thinking.entropy(law)
        first = side["at"] == 0
        later, changed = thinking.think(before, H, ends, window=window)
        begun = thinking.begin(H, ends)
        after = jax.tree.map(lambda a, b: jnp.where(first, a, b), begun, later)
        table = model.embed(jnp.arange(law.shape[-1])[None])[0]
        expected = law.astype(table.dtype) @ table
        marks = model.embed(side["marks"])
        step, most = side["at"][:, None], jnp.maximum(steps, 1)[:, None]
        to_soft, to_words = ~first & changed.to_soft, ~first & changed.to_explicit
        soft = thinking.reads(after)
        softened, worded = (
            thinking.blended(expected, marks[:, i], share, step, most)
            for i, share in enumerate((self.alpha, self.beta))
        )
        vector = jnp.where(to_words[:, None], worded, jnp.where(to_soft[:, None], softened, expected))
        new = after._asdict() | {
            "at": side["at"] + 1, "marks": side["marks"], "vector": vector.astype(side["vector"].dtype),
            "on": soft | to_words, "turned": side["turned"] + (to_soft | to_words),
        }  # fmt: skip
        pick = lambda a, b: jnp.where(live.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        return {name: pick(value, side[name]) for name, value in new.items()}

    def soft(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Feed:
        """See `Control.soft`."""
        return Feed(side["vector"], side["on"])


@dataclasses.dataclass(frozen=True)
class Vectors(Control):
    """In-context vectors: each request's own direction for every layer, pushed into the stream behind it."""

    dials = ("vectors.strength",)
    own = ("path",)

    path: str = ""
    strength: float = 0.0
    form: str = "added"

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        spec = models["model"].spec
        return {"u": jnp.zeros((batch, spec.L, spec.D))}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        path, shape = options["vectors"]["path"], sizes["u"].shape[1:]
        if not path:
            return {}
        try:
            with open(path, "rb") as file:
                u = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"generate.vectors.path={path!r} is no file of numpy.save: {str(error).rstrip('.')}."
            ) from error
        if u.shape != shape:
            raise ValueError(
                f"generate.vectors.path={path!r} holds {u.shape}; layers and width of the model are {shape}."
            )
        if u.dtype.kind not in "fiu" or not np.all(np.isfinite(u)):
            raise ValueError(f"generate.vectors.path={path!r} holds what is no finite number; make it anew.")
        return {"u": u}

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""
        u = jnp.swapaxes(side["u"], 0, 1)[:, :, None]  # [L, B, 1, D]
        strength = p.dials["vectors.strength"][:, None, None]
        push = steering.added if self.form == "added" else steering.released

        def edit(x: jax.Array, layers: Mapping[str, Any]) -> jax.Array:
            return push(x, layers["vectors"], strength).astype(x.dtype)

        return {"layers": {"vectors": u}, "edits": {"residual": edit}}


PARTS = {"swi": Swi, "vectors": Vectors}
