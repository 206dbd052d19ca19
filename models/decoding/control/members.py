"""Control `sets`: prompts with sets, whose members do not see one another and whose order does not count."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, Parsed, sets


@dataclasses.dataclass(frozen=True)
class Sets(Control):
    """Set-Based Prompting: "Pick one of [[red||green||blue]]:", with marks of the engine's.

    Members of a set begin at one position and are masked from one another; what follows stands behind the longest and
    sees all (`sets.layout`). They are read in the order of their tokens (`sets.ordered`), so that their order in the
    prompt changes no bit. `on`: whether a request's prompt has sets.
    """

    own = ("on",)
    whole = True

    open: str = "[["
    between: str = "||"
    close: str = "]]"
    on: bool = False

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if not (self.open and self.between and self.close):
            yield "generate.sets.open, between and close are the marks of a set; none may be empty, e.g. '[['."
        if any(word.strip() != "attention" for word in config.model.mixer.split(",")):
            yield (
                f"generate.control='sets' masks members from one another, which model.mixer={config.model.mixer!r} "
                "cannot; use a model of attention."
            )
        if parts.memory.name != "full" or parts.prefill is not None:
            yield "generate.control='sets' reads a prompt whole; use generate.memory='full', generate.prefill='dense'."
        if getattr(config.model, "kind", "lm") != "lm":
            yield f"generate.control='sets' is for model.kind='lm'; this run has {config.model.kind!r}."

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`. `group`: the set of a token of the prompt, `member`: its member, from 1; 0: plain."""
        zeros = jnp.zeros((batch, capacity), jnp.int32)
        none = jnp.zeros((batch,), jnp.int32)
        return {"place": zeros, "group": zeros, "member": zeros, "many": none, "next": none}

    def parsed(self, options: Mapping[str, Any], tokenizer: Any, prompt: str) -> Parsed | None:
        """See `Control.parsed`."""
        if not options["sets"]["on"]:
            return None
        ids = lambda text: np.asarray(tokenizer.encode(text)).tolist()  # noqa: E731
        parts = [[*map(ids, piece)] if isinstance(piece, list) else ids(piece) for piece in self.cut(prompt)]
        if getattr(tokenizer, "add_bos", True) or not any(parts):
            parts = [[tokenizer.bos], *parts]
        made = sets.layout(sets.ordered([part for part in parts if part]))
        if made.set_[-1] >= 0:
            raise ValueError(f"the prompt ends in a set; write something behind {self.close!r}, e.g. a colon.")
        entries = {"place": made.positions, "group": made.set_ + 1, "member": made.member + 1}
        whole = {name: np.asarray(value, np.int32) for name, value in entries.items()}
        return made.tokens.astype(np.int32), whole | {"many": np.int32(len(made.tokens)), "next": np.int32(made.next)}

    def cut(self, prompt: str) -> list[str | list[str]]:
        """The prompt as texts and sets of texts."""
        pieces: list[str | list[str]] = []
        while True:
            text, begins, rest = prompt.partition(self.open)
            if self.close in text:
                raise ValueError(f"the prompt has {self.close!r} without {self.open!r} before it; write both.")
            pieces.append(text)
            if not begins:
                return [piece for piece in pieces if piece]
            inside, ends, prompt = rest.partition(self.close)
            if not ends or self.open in inside:
                raise ValueError(f"the prompt has {self.open!r} without {self.close!r} behind it; write both.")
            members = inside.split(self.between)
            if not all(members):
                raise ValueError(f"a set of the prompt has an empty member: {inside!r}; write something into it.")
            pieces.append(members)

    def placed(self, side: Any, positions: jax.Array) -> jax.Array:
        """See `Control.placed`."""
        at = jnp.clip(positions, 0, side["place"].shape[1] - 1)
        many, own = side["many"][:, None], jnp.take_along_axis(side["place"], at, axis=1)
        behind = positions - many + side["next"][:, None]
        return jnp.where((positions < 0) | (many == 0), positions, jnp.where(positions < many, own, behind))

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""
        return {"among": functools.partial(sets.among, side["group"], side["member"])}


PARTS = {"sets": Sets}
