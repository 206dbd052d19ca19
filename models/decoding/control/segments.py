"""Control `roles`: who the tokens of a text come from, for models with `model.roles`; it is there for all of them."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import roles
from models.decoding.control import Control, Parsed

MARKS = re.compile(r"<\|(system|user|data)\|>")


@dataclasses.dataclass(frozen=True)
class Roles(Control):
    """The model is told the role of each token: of a prompt's by its segments, `count` - 1 (output) of what it writes.

    A prompt is what a user says; ids and chats may come with kinds of their own (`requests.Spoken`). `marked`: in a
    request's prompt <|system|>, <|user|> and <|data|> begin segments and are no tokens; in a chat they are messages.
    """

    own = ("marked",)
    whole = True

    count: int = 0
    marked: bool = False

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if not self.count:
            yield "generate.control='roles' is there by itself where model.roles is not 0; leave it out."
        if other := [name for name, part in parts.control if type(part).parsed is not Control.parsed and part != self]:
            yield (
                f"generate.control={other[0]!r} reads prompts in its own way, and so does a model of model.roles="
                f"{self.count}; leave {other[0]!r} out."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`: the role of each token of the prompt; where nothing else is said, a user's."""
        return {"prompt": jnp.full((batch, capacity), roles.role(np.array(roles.USER), self.count), jnp.int32)}

    def parsed(self, options: Mapping[str, Any], tokenizer: Any, prompt: str) -> Parsed | None:
        """See `Control.parsed`."""
        if not options["roles"]["marked"]:
            return None
        text, *rest = MARKS.split(prompt)
        pieces = [("user", text), *zip(rest[::2], rest[1::2], strict=True)]
        pieces = [(name, said) for name, said in pieces if said]
        if hasattr(tokenizer, "spoken"):
            told = tokenizer.spoken([{"role": name, "content": said} for name, said in pieces])
            ids, kinds = told.ids, told.kinds
        else:
            each = [np.asarray(tokenizer.encode(said), np.int32) for _, said in pieces]
            ids = np.concatenate([np.empty(0, np.int32), *each])
            kinds = np.repeat([roles.of_message(name) for name, _ in pieces], [len(one) for one in each])
        if getattr(tokenizer, "add_bos", True) or not len(ids):
            ids = np.concatenate([[tokenizer.bos], ids])
            kinds = np.concatenate([kinds[:1] if len(kinds) else [roles.USER], kinds])
        return ids.astype(np.int32), self.of(kinds)

    def of(self, kinds: np.ndarray) -> Mapping[str, np.ndarray]:
        """Entries of the side of a prompt whose tokens have these kinds, `[n]`."""
        return {"prompt": roles.role(kinds, self.count)}

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""

        def at(positions: jax.Array) -> jax.Array:
            own = jnp.take_along_axis(side["prompt"], jnp.clip(positions, 0, side["prompt"].shape[1] - 1), axis=1)
            return jnp.where(positions < p.prompt[:, None], own, self.count - 1)

        return {"roles": at}


PARTS = {"roles": Roles}
