"""Control `constraint`: each row's own regular expression, JSON schema or list of answers, followed on the device.

A row's side is its token automaton, with tokens that do the same in every state as one class. A token is allowed where
an end is still within the row's limit, so that a text that is begun is ended.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, automata, nodes, schema
from models.decoding.drafts import Seen, Tree

SLOW = 1.0  # Seconds of a compilation that is reported.


@dataclasses.dataclass(frozen=True)
class Constraint(Control):
    """See the module's docstring. One of `pattern`, `schema` and `choices` (separated by "|") is a request's own.

    `states`, `classes`: how large an automaton may be; they are the size of the side.
    """

    own = ("pattern", "schema", "choices")

    pattern: str = ""
    schema: str = ""
    choices: str = ""
    states: int = 1024
    classes: int = 256

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`. Class 0 is what is forbidden everywhere."""
        V = models["model"].head_weights().shape[0]
        return {
            "on": jnp.zeros((batch,), bool),
            "class": jnp.zeros((batch, V), jnp.int32),
            "next": jnp.full((batch, self.states, self.classes), automata.DEAD, jnp.int32),
            "distance": jnp.zeros((batch, self.states), jnp.int32),
            "state": jnp.zeros((batch,), jnp.int32),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        asked = options["constraint"]
        named = [name for name in self.own if asked[name]]
        if not named:
            return {"on": np.zeros((), bool)}  # Beginnings that rows share come with the side of another.
        if len(named) > 1:
            raise ValueError(f"generate.constraint has {' and '.join(named)}; use one, e.g. {named[0]}.")
        made = compiled(pattern_of(named[0], asked[named[0]]), tokenizer)
        if made.distance[0] > options["max_tokens"]:
            raise ValueError(
                f"generate.max_tokens={options['max_tokens']} is too few for generate.constraint.{named[0]}; "
                f"the shortest text has {made.distance[0]} tokens, its end included."
            )
        kind, table = merged(made.next)
        for name, has, most in (("states", len(table), self.states), ("classes", table.shape[1], self.classes)):
            if has > most:
                raise ValueError(f"generate.constraint.{name}={most} is too few for this {named[0]}; use {has}.")
        side = {name: np.zeros(x.shape[1:], x.dtype) for name, x in sizes.items()}
        side["class"][: len(kind)] = kind
        side["next"][:] = automata.DEAD
        side["next"][: len(table), : table.shape[1]] = table
        side["distance"][: len(table)] = made.distance
        return side | {"on": np.ones((), bool)}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        state = nodes.along(tree, side["state"], lambda state, node: after(side, state, tree.token[:, node]))
        row = jax.vmap(lambda table, state: table[jnp.maximum(state, 0)])(side["next"], state)  # [B, N, C]
        row = jnp.where((state >= 0)[..., None], row, automata.DEAD)
        far = jax.vmap(lambda distance, target: distance[jnp.maximum(target, 0)])(side["distance"], row)
        left = p.limit[:, None, None] - position[..., None] - 2
        fits = (row >= 0) & (far <= left)
        allowed = jax.vmap(lambda fits, kind: fits[:, kind])(fits, side["class"])  # [B, N, V]
        # Behind a draft that is forbidden nothing is: no such draft stays, and its logits are left as they are.
        free = ~side["on"][:, None] | (~jnp.any(allowed, axis=-1) & (jnp.arange(allowed.shape[1]) > 0))
        return jnp.where(allowed | free[..., None], logits, -jnp.inf), state

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        node, token, live = nodes.last(seen)
        new = after(side, nodes.taken(made, node), token)
        return side | {"state": jnp.where(live & side["on"], new, side["state"])}


def after(side: Mapping[str, jax.Array], state: jax.Array, token: jax.Array) -> jax.Array:
    """The state `[B]` behind a token `[B]`; DEAD stays."""
    kind = jnp.take_along_axis(side["class"], token[:, None], axis=1)[:, 0]
    new = jax.vmap(lambda table, state, kind: table[jnp.maximum(state, 0), kind])(side["next"], state, kind)
    return jnp.where(state >= 0, new, automata.DEAD)


def pattern_of(name: str, text: str) -> str:
    """The pattern that a setting of the group says."""
    if name == "schema":
        return schema.pattern_of(text)
    return "|".join(map(re.escape, text.split("|"))) if name == "choices" else text


def merged(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class of each token `[V]`, table `[S, C]`): equal columns are one class, class 0 is forbidden everywhere."""
    columns, kind = np.unique(table.T, axis=0, return_inverse=True)
    dead = (columns == automata.DEAD).all(axis=1)
    order = np.argsort(~dead, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    first = 0 if dead.any() else 1  # A class of its own is kept for what no token is.
    made = columns[order].T
    if first:
        made = np.concatenate([np.full((len(table), 1), automata.DEAD, made.dtype), made], axis=1)
    return rank[kind.reshape(-1)] + first, made


def vocabulary(tokenizer: Any) -> Sequence[bytes | None]:
    """The bytes of each id; None for those that stand for no text."""
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    if pieces := getattr(tokenizer, "pieces", None):
        return [None if i in special else piece for i, piece in enumerate(pieces)]
    size = tokenizer.vocab_size
    return [None if i in special else tokenizer.decode([i]).encode("utf-8", "surrogateescape") for i in range(size)]


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str, words: tuple, eos: int) -> automata.Tokens:
    start = time.perf_counter()
    made = automata.lift(automata.compile_regex(pattern), words, eos)
    if (took := time.perf_counter() - start) > SLOW:
        print(f"constraint: {len(made.next)} states were compiled in {took:.1f} s", flush=True)
    return made


def compiled(pattern: str, tokenizer: Any) -> automata.Tokens:
    """The token automaton of a pattern for a tokenizer; those that were made last are kept."""
    return _compiled(pattern, tuple(vocabulary(tokenizer)), tokenizer.eos)


PARTS = {"constraint": Constraint}
