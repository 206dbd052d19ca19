"""Socket Memory: what does a layer of attention keep of the text while it is decoded?

`generate.memory` names a policy. A policy is a class in a module of this folder that says `PARTS = {"mine": Mine}`; its
options are the knobs of `generate.mine`. Attention reads the class of its state and never a policy's name, so that a
policy is one file and one group of knobs (docs/decoding.md adds one).

An instance is the state of one layer: a frozen dataclass, registered as a pytree, whose every leaf has the batch in
front. One pass reads T new tokens of each row (a piece of the prompt, one token, or drafts):

    memory, view = memory.read(q, k, v, context)     # before attention: what the queries may look at
    memory = memory.looked(Looks(...), context)      # after it, where `looks`: the weights of every key
    layers = type(memory).commit(layers, path, count, start)  # where `rewinds`: those of T drafts that stay

and, where `settles`, once for each row, all layers together: `Mine.settle(layers, ended)` when its prompt is read.

The rule of an eviction policy in one line: attend to the C kept tokens and the T new ones, then keep the best C of
C + T. T = 1 is a decoding step, T = the prompt compresses it, and pieces of a prompt need nothing more. The last token
of a prompt is read by a row's first round, T = 1: `context.asked.prompt` says which one that is.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from models import tables
from models.mixers.context import Context


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a layer's memory is made for.

    Attributes:
      batch: rows.
      length: tokens that a row may come to have, the prompt included.
      N: query heads; K: key heads; H: width of a head.
      dtype: of keys and values.
      slots: of a policy that keeps every token: at first fewer than `length`, where rows are moved as they grow.
      layer: which of the `layers` layers of the model, from the first.
      drawn: of a policy that says so (`draws`), the tokens that are drawn behind a prompt at most.
    """

    batch: int
    length: int
    N: int
    K: int
    H: int
    dtype: Any
    slots: int
    layer: int = 0
    layers: int = 1
    drawn: int = 0


class View(NamedTuple):
    """What the T new queries of each row attend to: S keys, in any order.

    A key is seen where its position is not negative, the pass's mask holds for the two positions, it is less than
    `window` positions back (where `window` is given), `keep` holds, and, where drafts are a tree, it is no draft of
    another branch. The logit of a key is q.k / sqrt(H) + `bias`.
    """

    k: jax.Array  # [B, S, K, H]
    v: jax.Array  # [B, S, K, H]
    position: jax.Array  # [B, S], or [B, K, S] where heads keep different tokens; -1 = an empty slot
    start: jax.Array  # [B] the first of the T new tokens, which lie side by side: slot start[b] + t holds token t
    window: int = 0  # static; 0: none
    bias: jax.Array | None = None  # [B, K, 1|T, S]
    keep: jax.Array | None = None  # [B, 1|K|N, 1|T, S] bool
    # With rotary = "slot": where keys [B, S] and queries [B, T] stand for the rotary positions.
    key_place: jax.Array | None = None
    query_place: jax.Array | None = None
    # In their place, of keys that are rotated already: the query is turned by each of P places, and a key reads one.
    turns: jax.Array | None = None  # [B, T, P] places
    turn: jax.Array | None = None  # [B, S] which of the P
    first: int | None = None  # static; keys that read the first of them are among the first so many, None: anywhere


class Looks(NamedTuple):
    """What the queries made of the keys of a `View`; G = N / K query heads share a key head."""

    weights: jax.Array  # [B, K, G, T, S] after the softmax; 0 where a key is not seen; padded queries have zeros
    logits: jax.Array  # [B, K, G, T, S] before it, -inf where a key is not seen
    # [B] false, but known only once the values have been read. What is written into values in place has to wait for it:
    # XLA copies all of them where it cannot tell that their last reader was earlier.
    unread: jax.Array


class Sums(NamedTuple):
    """What `looked` needs of a first pass over many tokens, without the weights of all T x S pairs."""

    columns: Callable[..., jax.Array]  # (weights [B, T], noise=None) -> [B, K, S], see kernels.column_sums
    rows: Callable[[jax.Array], Looks]  # (which [B, W] of the T queries, -1 = none) -> what these made of the keys


class Memory:
    """Base of all policies: the members below, with what holds for a policy that says nothing else.

    Attributes:
      rotary: "stored": `read` is given rotated queries and keys; "slot": it is given them unrotated, and the view says
        where they stand (StreamingLLM: ranks in the cache).
      looks: whether `looked` is called. Attention then forms all weights, [B, K, G, T, S] numbers.
      sums: whether `summed` can take the place of `looked` where the first pass of a row has many tokens.
      rewinds: whether `commit` can drop drafts that were not accepted. Of a model with a state that cannot, the engine
        reads the accepted drafts again from the state before.
      settles: whether `settle` is called.
      pieces: whether a prompt may be read in any pieces without a change. Where not, the engine reads each in one pass,
        but for its last token, and shares no beginnings.
      alone: whether text is drawn one token a pass, without drafts: what stays depends on the order of the passes.
      draws: whether `Sizes.drawn` matters.
      group: of its knobs, "generate.GROUP", where that is not its name.
    """

    rotary: ClassVar[str] = "stored"
    looks: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    rewinds: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    pieces: ClassVar[bool] = True
    alone: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    group: ClassVar[str] = ""

    @classmethod
    def empty(cls, sizes: Sizes, **options: Any) -> Self:
        """The memory before the first token; `options` are the knobs of `generate.NAME`."""
        raise NotImplementedError

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """Takes in the T new tokens of each row.

        Args:
          q: `[B, T, N, H]`; k, v: `[B, T, K, H]`; q and k rotated where `rotary` is "stored".
          context: `positions [B, T]` (-1 = padding, which enters nothing), `slots` and `start` (which token stands in
            which slot, once per model, for policies that keep all of them; the new ones included), `fresh` (static: no
            token came before these), `parents` (drafts as a tree), `asked` (tokens of each row's prompt, and its
            key; None outside the engine), `rotate` (where `rotary` is "slot": the layer's rotary positions,
            `(x [B, T, N|K, H], positions [B, T]) -> x`), `steady` (with it: whether turns add up, so that a view may
            have `turns`).

        Returns:
          the memory that holds them, and the view of these queries.
        """
        raise NotImplementedError

    def looked(self, looks: Looks, context: Context) -> Self:
        """The memory after attention, e.g. with C of its C + T tokens; called where `looks` is True."""
        return self

    def summed(self, sums: Sums, context: Context) -> Self:
        """As `looked`, of a first pass over many tokens; called where `looks` and `sums` are True."""
        raise NotImplementedError

    @classmethod
    def commit(
        cls, layers: tuple[Self, ...], path: jax.Array | None, count: jax.Array, start: jax.Array
    ) -> tuple[Self, ...]:
        """All layers' memories with the accepted ones of the T tokens that their last `read` took in.

        Args:
          layers: those of the layers that keep such a memory, in order of depth.
          path: `[B, D]` their indices in order of depth; None: drafts were a chain, and they are 0..count-1.
          count: `[B]` how many stay, 0 for a row that is not live.
          start: `[B]` slot of the first of the T.
        """
        raise NotImplementedError

    @classmethod
    def settle(cls, layers: tuple[Self, ...], ended: jax.Array) -> tuple[Self, ...]:
        """All layers' memories when prompts are read, e.g. to share one budget among layers (PrefixKV).

        Args:
          layers: those of the layers that keep such a memory, in order of depth.
          ended: `[B]` rows whose prompt this pass has read, all but its last token; the others come back as they are.
        """
        return layers

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options, a sentence each, with a value that works."""
        return iter(())


@dataclasses.dataclass(frozen=True)
class Policy:
    """A name of `MEMORIES` and its options: hashable, so that a jitted function takes it as static.

    `layer` and `layers` are set by the stack, which makes a state for each of its layers. `slots`, `drawn`: see
    `Sizes`; 0 slots: as many as a row may have tokens.
    """

    name: str = "full"
    options: tuple[tuple[str, Any], ...] = ()
    slots: int = 0
    layer: int = 0
    layers: int = 1
    drawn: int = 0

    @classmethod
    def of(cls, generate: Mapping[str, Any]) -> "Policy":
        """What `config.generate`, as a plain dict, asks for."""
        name = generate["memory"]
        drawn = generate["max_tokens"] if MEMORIES[name].draws else 0
        return cls(name, tuple(sorted(generate.get(group(name), {}).items())), drawn=drawn)

    def empty(self, batch: int, length: int, *, N: int, K: int, H: int, dtype: Any) -> Memory:
        """The memory of this layer before the first token."""
        sizes = Sizes(batch, length, N, K, H, dtype, self.slots or length, self.layer, self.layers, self.drawn)
        return MEMORIES[self.name].empty(sizes, **dict(self.options))


def group(name: str) -> str:
    """The group of the knobs of a memory: generate.GROUP."""
    return MEMORIES[name].group or name


def settled(policy: Policy, layers: Any, ended: jax.Array) -> Any:
    """The layers of a decoding state after `Memory.settle`, where the policy settles."""
    kind = MEMORIES[policy.name]
    if not kind.settles:
        return layers
    leaves, tree = jax.tree.flatten(layers, is_leaf=lambda x: isinstance(x, Memory))
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, kind)]
    if not at:  # They are watched (`shadow`), which begins behind the prompt.
        return layers
    for i, memory in zip(at, kind.settle(tuple(leaves[i] for i in at), ended), strict=True):
        leaves[i] = memory
    return jax.tree.unflatten(tree, leaves)


MEMORIES: dict[str, type[Memory]] = tables.found(__name__)

__all__ = ["MEMORIES", "Context", "Looks", "Memory", "Policy", "Sizes", "Sums", "View", "group", "settled"]
