"""Control `json`: answers that are JSON of any depth; the host looks at the row between two rounds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, Host, nested
from models.decoding.control.constraint import vocabulary
from models.decoding.drafts import Tree


@dataclasses.dataclass(frozen=True)
class Json(Control):
    """See the module's docstring. What is regular, a schema above all, is faster as a `constraint`."""

    own = ("on",)
    alone = True

    on: bool = False

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        return {"allowed": jnp.ones((batch, models["model"].head_weights().shape[0]), bool)}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        if options["json"]["on"]:
            nested.known(tuple(vocabulary(tokenizer)))
            if options["max_tokens"] < 2:
                raise ValueError("generate.max_tokens=1 is too few for JSON and its end; use at least 2.")
        return {}

    def hosts(self, options: Mapping[str, Any]) -> bool:
        """See `Control.hosts`."""
        return options["json"]["on"]

    def between(self, row: Host, side: Any) -> Any:
        """See `Control.between`."""
        words = tuple(vocabulary(row.tokenizer))
        state = nested.START
        for token in row.tokens[row.prompt :]:
            state = nested.follow(state, words[token] or b"")
        left = row.options["max_tokens"] - (len(row.tokens) - row.prompt)
        mask = np.zeros(side["allowed"].shape, bool)
        mask[: len(words)] = nested.allowed(nested.known(words), state, left, len(words))
        mask[row.tokenizer.eos] = nested.complete(state)
        if not mask.any():
            raise ValueError("no token goes on with this JSON; another control leaves none that does")
        return {"allowed": mask}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return jnp.where(side["allowed"][:, None], logits, -jnp.inf), None


PARTS = {"json": Json}
