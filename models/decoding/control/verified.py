"""Control `semantic`: each next token weighed by what a verifier of the whole text makes of it, around a sample."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, Step, semantic, trials
from models.decoding.drafts import Seen, Tree


@dataclasses.dataclass(frozen=True)
class Semantic(Control):
    """Semantic probabilistic control: before each token a sample of `length` more is drawn; the verifier is linearised
    at the expected embeddings of the laws of its places (`semantic.linearised`), and a token's law is multiplied by
    E[phi | token]^weight; weight 0 is off.

    `path`: a .npz file of `kernel [D]` and `bias`: phi = sigmoid(bias + kernel . m), m the mean of the model's own
    embeddings over the answer and the sample. A token costs 1 + `length` passes more.
    """

    dials = ("semantic.weight",)
    own = ("path",)
    alone = True

    weight: float = 0.0
    path: str = ""
    length: int = 8

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`: laws and tokens of the sample, the answer's embeddings so far, the verifier."""
        V, T, D = models["model"].head_weights().shape[0], self.length + 1, models["model"].spec.D
        return {
            "kernel": jnp.zeros((batch, D)),
            "bias": jnp.zeros((batch,)),
            "sum": jnp.zeros((batch, D)),
            "many": jnp.zeros((batch,), jnp.int32),
            "laws": jnp.zeros((batch, T, V)),
            "sample": jnp.zeros((batch, T), jnp.int32),
            "turn": jnp.zeros((batch,), jnp.int32),
            "factor": jnp.zeros((batch, V)),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        asked, D = options["semantic"], sizes["kernel"].shape[-1]
        if not asked["weight"]:
            return {}
        path = asked["path"]
        try:
            with np.load(path, allow_pickle=False) as file:
                kernel, bias = (np.asarray(file[name], np.float32) for name in ("kernel", "bias"))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(
                f"generate.semantic.path={path!r} is no .npz file of kernel and bias; see docs/control.md."
            ) from error
        if kernel.shape != (D,) or bias.shape != () or not np.isfinite(kernel).all() or not np.isfinite(bias):
            raise ValueError(
                f"generate.semantic.path={path!r} holds {kernel.shape} and {bias.shape}; a finite kernel ({D},) and a "
                "bias () are asked."
            )
        return {"kernel": kernel, "bias": bias}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        log_p = jax.nn.log_softmax(logits[:, 0], axis=-1)
        on = (p.dials["semantic.weight"] != 0) & (side["turn"] > self.length)
        return jnp.where(on[:, None, None], logits + side["factor"][:, None].astype(logits.dtype), logits), log_p

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`: a place of the sample, or a token of the answer."""
        live, token = seen.count > 0, seen.token[:, 0]
        sampling = live & (side["turn"] <= self.length)
        place = (jnp.arange(self.length + 1) == side["turn"][:, None]) & sampling[:, None]
        vector = models["model"].embed(token[:, None])[:, 0].astype(side["sum"].dtype)
        drawn = live & ~sampling
        return side | {
            "laws": jnp.where(place[..., None], made[:, None].astype(side["laws"].dtype), side["laws"]),
            "sample": jnp.where(place, token[:, None], side["sample"]),
            "turn": side["turn"] + sampling,
            "sum": side["sum"] + jnp.where(drawn[:, None], vector, 0),
            "many": side["many"] + drawn,
        }

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            B, weight = len(p.length), p.dials["semantic.weight"]
            on = live & (weight != 0)
            ahead = trials.repeated(p, 1, jnp.ones(B, jnp.int32))
            ahead = trials.with_side(ahead, "semantic", turn=jnp.zeros(B, jnp.int32))
            ahead = trials.looped(inner, models, parts, ahead, lambda p, turn: p.live & on & (turn <= self.length))
            side = ahead.side["semantic"]
            table = models["model"].embed(jnp.arange(side["factor"].shape[-1])[None])[0].astype(jnp.float32)
            expected = jax.vmap(self._expected, in_axes=(0, 0, 0, 0, 0, 0, 0, None))(
                side["laws"], side["sample"], side["turn"], p.side["semantic"]["sum"], p.side["semantic"]["many"],
                side["kernel"], side["bias"], table,
            )  # fmt: skip
            factor = weight[:, None] * jnp.log(expected)
            # `turn` beyond the sample says that the next token is the answer's.
            told = trials.with_side(p, "semantic", factor=factor, turn=jnp.full(B, self.length + 1, jnp.int32))
            once = inner(models, told, parts, live)
            return dataclasses.replace(once, calls=once.calls + ahead.calls - p.calls)

        return step

    def _expected(self, laws, sample, turn, total, many, kernel, bias, table) -> jax.Array:
        """E[phi | y] of one row for every next token y, `[V]`; places behind the end of its sample do not count."""
        here = jnp.arange(len(sample)) < turn
        count = jnp.maximum(many + jnp.sum(here), 1)

        def verifier(embedded: jax.Array) -> jax.Array:
            mean = (total + jnp.sum(jnp.where(here[:, None], embedded, 0), axis=0)) / count
            return jax.nn.sigmoid(bias + kernel @ mean)

        # -inf of rules that cut tokens is a probability of 0, not a product with it.
        return semantic.linearised(verifier, laws, sample, 0, table)


PARTS = {"semantic": Semantic}
