"""Socket Drafter: which tokens are proposed, to be read by the model in one pass?

`generate.drafter` names one. A drafter is a frozen dataclass in a module of this folder that says
`PARTS = {"mine": Mine}`; its fields are the knobs of `generate.mine`, so that it is static under jit. What it learns of
a request is its side: a pytree whose every leaf has the batch in front, kept in `Progress.side[name]`.

Drafts may be a chain or a tree. Whether a draft stays is the verifier's business (`models.decoding.verify`), and with
`same_draw` the text does not depend on the drafter at all.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax

from models import tables
from models.block import Pass


class Probes(NamedTuple):
    """P vectors a row that are read beside the drafts of a round and are no part of the text.

    The pass makes features of them, `made.features[:, N:]` behind those of the N nodes; the cache drops them.
    """

    vector: jax.Array  # [B, P, D] read as embedded tokens
    parent: jax.Array  # [B, P] the node behind which it stands, or N + the index of an earlier probe
    valid: jax.Array  # [B, P] whether there is such a probe


class Tree(NamedTuple):
    """N nodes a row: the last token of the text, node 0, and drafts behind it. A parent stands before its children."""

    token: jax.Array  # [B, N] ids
    parent: jax.Array  # [1|B, N] index of the parent; of node 0 it is -1
    q: jax.Array | None  # [B, N, V] the law that node i was drawn from (after sampling rules); None: a certain choice
    valid: jax.Array  # [B, N] whether there is such a draft; a child of what is not valid is not valid; node 0 is
    probes: Probes | None = None  # what is read beside the drafts; of drafters that branch

    @classmethod
    def chain(cls, token: jax.Array, valid: jax.Array, q: jax.Array | None = None) -> "Tree":
        """Each node behind the one before it."""
        import jax.numpy as jnp

        return cls(token, jnp.arange(token.shape[1])[None] - 1, q, valid)


class Drafter:
    """Base of all drafters. Fields of a subclass are its knobs.

    Attributes:
      runs: fields that hold the workdir of a run whose model it reads; `propose` finds it in `models["NAME.FIELD"]`.
      branches: whether drafts are a tree. Mixers with a recurrence read chains only.
      draws: whether `Tree.q` is given.
      taps: sites of the model whose activations `read` and `observe` are shown, `made.report[site]` `[L, B, T, D]`;
        ("residual",): the stream after each layer. `made.features`, the stream after the last norm, is always there.
      nodes: N, the last token and all drafts, and P more with probes: what a round reads of a row at most.
      depth: D, tokens of the longest path, the last token included; N for a chain. A node has at most N - D + 1
        children.
      independent: whether the children of a node are drawn independently of each other, so that they may be equal.
    """

    runs: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    taps: ClassVar[tuple[str, ...]] = ()

    @property
    def independent(self) -> bool:
        """See the class: a chain has one child a node."""
        return not self.branches

    @property
    def nodes(self) -> int:
        """See the class."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """See the class."""
        return self.nodes

    def problems(self, config: Any) -> Iterator[str]:
        """Sentences about settings that cannot be with the model of `config`, a run's."""
        yield from ()

    def host(self) -> Any:
        """What it keeps on the host for all requests of a decoder; `propose` finds it as `models["hosts"][self]`."""
        return None

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """The side of `batch` rows that have no token yet, for texts of up to `capacity` tokens.

        Every leaf has the batch in front: rows of it are inserted, taken and moved with those of the model's state.
        """
        return {}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """The side after a piece of the prompt, `[B, T]` each; position -1 is padding. `made`: the model's pass on it.

        The last token of a prompt is not among them: it is node 0 of the first round.
        """
        return side

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """Drafts behind the last token of each row.

        Args:
          models: the model itself, `models["model"]`, and those that `runs` names.
          p: `stream.Progress`; the own side is `p.side[name]`. Drafts beyond `p.limit` are cut by the engine.
          parts: the other sockets' parts: `parts.control` says what logits become.

        Returns:
          the tree, and the side as `observe` is to find it.
        """
        raise NotImplementedError

    def left(self, state: Any, side: Any) -> tuple[Any, Any]:
        """(the model's state that the drafts are to be read behind, the side), of what `propose` returned as the side.

        A drafter that wrote into the slots behind the text hands them on: else they would have to be copied first.
        """
        return state, side

    def observe(self, models: Mapping[str, Any], side: Any, seen: "Seen") -> Any:
        """The side after the model has read the tree and the verifier has judged it."""
        return side


class Seen(NamedTuple):
    """One round, as drafters and processors find it when it is over."""

    tree: Tree
    position: jax.Array  # [B, N] of each node; -1: not read (no such draft, or the row is not live)
    logits: jax.Array  # [B, N, V] after the control, as the verifier read them
    path: jax.Array  # [B, D] accepted nodes in order of depth; node 0 is the first
    count: jax.Array  # [B] how many of `path` stand: 1 + accepted drafts, 0 for a row that is not live
    token: jax.Array  # [B, D] what the text got: token[b, j] follows path[b, j], for j < count[b]
    p: Any  # stream.Progress before the round
    made: Pass  # of the model on the nodes: `features [B, N, D]`, and `report` with the sites that parts tap


DRAFTERS: dict[str, type[Drafter]] = tables.found(__name__)
