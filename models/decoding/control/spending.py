"""Control `budget`: answers of about so many tokens, by what a predictor or a known chain says of their length."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.block import Pass
from models.decoding.control import Control, budget
from models.decoding.control.constraint import vocabulary
from models.decoding.drafts import Tree


@dataclasses.dataclass(frozen=True)
class Budget(Control):
    """`budget`: each request's own `tokens`; 0 is off.

    `form`: "predicted", the head that objective=remaining trains, behind newlines and at the first token, as released
    (`budget.released`); or "exact", at every token, for a source that is a chain whose state is the last token:
    `path` is a .npy file of u `[most, V]` at most, u[b, v] the chance that a text whose last token is v ends within b
    more (`budget.stops_within`). Where no token is in time the row ends with a message.
    """

    dials = ("budget.tokens",)
    own = ("path",)
    alone = True

    tokens: int = 0
    form: str = "predicted"
    path: str = ""
    most: int = 256

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        V = models["model"].head_weights().shape[0]
        if self.form == "predicted":
            return {"newline": jnp.zeros((batch, V), bool)}
        return {"within": jnp.ones((batch, self.most, V))}

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if self.form == "predicted" and config.objective != "remaining":
            yield (
                f"generate.control='budget' reads a head that objective={config.objective!r} does not train; use a run "
                "of objective='remaining', or generate.budget.form='exact'."
            )

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        asked = options["budget"]
        if not asked["tokens"]:
            return {}
        if self.form == "predicted":
            newline = np.zeros(sizes["newline"].shape[1:], bool)
            words = vocabulary(tokenizer)
            newline[: len(words)] = [word is not None and word.endswith(b"\n") for word in words]
            return {"newline": newline}
        u, V = table(asked["path"]), sizes["within"].shape[-1]
        if u.ndim != 2 or u.shape[1] > V or not np.all((u >= 0) & (u <= 1 + 1e-6)):
            raise ValueError(
                f"generate.budget.path={asked['path']!r} holds {u.shape}, no chances of {V} tokens; make it anew."
            )
        if not asked["tokens"] <= len(u) <= self.most:
            raise ValueError(
                f"generate.budget.path={asked['path']!r} has {len(u)} rows; generate.budget.tokens={asked['tokens']} "
                f"needs as many, and generate.budget.most={self.most} holds no more."
            )
        within = np.zeros(sizes["within"].shape[1:], np.float32)
        within[: len(u), : u.shape[1]] = u
        return {"within": within}

    def shown(self, models: Mapping[str, Any], side: Any, made: Pass) -> Any:
        """See `Control.shown`: the predictions for every next token."""
        if self.form != "predicted":
            return side
        head = models["model"].heads["remaining"]
        return side | {"gamma": budget.gamma_of(made.features[:, 0], head.kernel[...], head.bias[...])}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        tokens, written = p.dials["budget.tokens"], p.length - p.prompt
        left, here = jnp.maximum(tokens - written, 1), logits[:, 0]
        on = tokens > 0
        if self.form == "predicted":
            alpha, rate = side["gamma"]
            newline = jnp.take_along_axis(side["newline"], tree.token[:, :1], axis=1)[:, 0]
            on &= newline | (written == 0)
            guided = jnp.log(budget.released(here, alpha, rate, left))
        else:
            row = jnp.clip(left.astype(jnp.int32) - 1, 0, self.most - 1)
            within = jnp.take_along_axis(side["within"], row[:, None, None], axis=1)[:, 0]
            some = jnp.any((within > 0) & (here > -jnp.inf), axis=-1, keepdims=True)
            guided = jnp.where(some, budget.exact(jax.nn.log_softmax(here, axis=-1), within), -jnp.inf)
        return jnp.where(on[:, None, None], guided[:, None].astype(logits.dtype), logits), None


def table(path: str) -> np.ndarray:
    """The array of a file of `numpy.save`. Errors: ValueError in one sentence."""
    try:
        with open(path, "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), np.float64)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"generate.budget.path={path!r} is no file of numpy.save: {str(error).rstrip('.')}."
        ) from error


PARTS = {"budget": Budget}
