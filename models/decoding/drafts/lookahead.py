"""Drafter `trie`: what followed the last tokens before, in this prompt and in what was written (`trie.Trie`, host).

The trie lies on the host: each round asks it for the drafts of all rows. What it holds depends on what was served
before, so drafts do, too; the text does not with `same_draw` and `greedy`, and has the same law with `children`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.trie import Found, Stream, Trie


@dataclasses.dataclass
class Row:
    """A request under way: its number in the trie, and how far its text was taken in."""

    number: int
    trie: Trie
    stream: Stream
    seen: int


class Shelf:
    """The tries of a decoder, and the requests that write into them. Asking twice for one round changes nothing."""

    def __init__(self, options: "Lookahead"):
        self.options, self.rows = options, {}
        self.numbers, self.everyone = itertools.count(), Trie()

    def answers(self, asked: np.ndarray) -> np.ndarray:
        """Drafts `[B, 3, N]` int32, token, parent and whether there is such a node, of rows `[B, R + 4]` int32: a text,
        its length, the two words of its request's key, and whether it is done.

        One array each way, and lists in between: what numpy and the callback do with an array takes longer than looking
        drafts up.
        """
        asked, options = np.asarray(asked), self.options
        made = np.zeros((len(asked), 3, options.nodes), np.int32)
        made[:, 1, 0], made[:, 2, 0] = -1, 1
        here, live = {}, []
        for b, (length, *key, done) in enumerate(asked[:, -4:].tolist()):
            if done:
                made[b, 0, 0] = asked[b, max(length - 1, 0)]
                continue
            row = here[tuple(key)] = self._row(tuple(key), asked[b, :length])
            row.stream.insert(asked[b, row.seen : length].tolist())
            row.seen = length
            live.append((b, row, asked[b, max(length - options.last, 0) : length].tolist()))
        for b, row, last in live:
            found = self._found(row, last)
            n = len(found.token)
            made[b, 0, :n], made[b, 1, :n], made[b, 2, :n] = found.token, found.parent, 1
        for name in self.rows.keys() - here.keys():
            self._close(name)
        return made

    def _row(self, name: tuple[int, ...], own: np.ndarray) -> Row:
        """The request of this key: one that is known, or a new one, whose text so far is its prompt."""
        if name in self.rows and self.rows[name].seen > len(own):  # The same request, asked anew.
            self._close(name)
        if name not in self.rows:
            trie, number = self.everyone if self.options.shared else Trie(), next(self.numbers)
            trie.insert(own.tolist(), self.options.branch, number)
            self.rows[name] = Row(number, trie, Stream(trie, self.options.branch), len(own))
            self.rows[name].stream.insert(own[-1:].tolist())
        return self.rows[name]

    def _found(self, row: Row, last: list[int]) -> Found:
        """Drafts behind the text, no node with more children than `Drafter` promises."""
        o = self.options
        asked = {"size": o.size, "branch": o.branch, "request": row.number, "output_weight": o.output_weight}
        found = row.trie.query(last, **asked)
        return first_path(found) if o.chain else few_children(found, o.nodes - o.depth + 1)

    def _close(self, name: tuple[int, ...]) -> None:
        row = self.rows.pop(name)
        row.stream.insert([], final=True)
        row.trie.close(row.number)


def few_children(found: Found, most: int) -> Found:
    """Without the children of a node beyond its first `most`, and what is below them."""
    place, children = {0: 0}, {}
    token, parent = [found.token[0]], [-1]
    for i, (x, above) in enumerate(zip(found.token[1:], found.parent[1:], strict=True), start=1):
        if above in place and children.get(above, 0) < most:
            children[above] = children.get(above, 0) + 1
            place[i] = len(token)
            token.append(x)
            parent.append(place[above])
    return Found(token, parent, found.sizes)


def first_path(found: Found) -> Found:
    """The path from the root along first children."""
    n = next((i for i, above in enumerate(found.parent) if above != i - 1), len(found.parent))
    return Found(found.token[:n], found.parent[:n], found.sizes)


def answered(answers: Callable, wanted: jax.ShapeDtypeStruct, asked: jax.Array, *, alone: bool) -> jax.Array:
    """`answers(asked)` of the host, of the shape and type of `wanted`.

    alone: one device has all of `asked`. Of a CPU the host then reads and writes the program's own memory: what
    `pure_callback` does to move arrays takes 0.4 CPU ms a call, more than twice what `answers` does.
    """

    def written(_: Any, out: Any, asked: Any) -> None:
        np.asarray(out)[...] = answers(np.asarray(asked))

    moved = functools.partial(jax.pure_callback, answers, wanted)
    if not alone:
        return moved(asked)
    return jax.lax.platform_dependent(asked, cpu=buffer_callback(written, wanted), default=moved)


@dataclasses.dataclass(frozen=True)
class Lookahead(Drafter):
    """See the module's docstring.

    `size` nodes at most, the root included, no deeper than `branch`; the last `last` tokens are looked up, then fewer.
    A node's weight is (1 - output_weight) times its count in the prompt, and output_weight times that in outputs.
    `shared`: one trie for all requests of a decoder, in which outputs stay. `chain`: the likeliest path alone.
    """

    size: int
    branch: int
    last: int
    output_weight: float
    shared: bool
    chain: bool

    @property
    def branches(self) -> bool:
        """See `Drafter`."""
        return not self.chain

    @property
    def nodes(self) -> int:
        """See `Drafter`."""
        return self.branch + 1 if self.chain else max(self.size, self.branch + 1)

    @property
    def depth(self) -> int:
        """See `Drafter`."""
        return self.branch + 1

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if self.size <= self.branch:
            yield (
                f"generate.trie.size={self.size} nodes hold no branch of generate.trie.branch={self.branch} behind the "
                f"last token; use generate.trie.size={self.branch + 1}."
            )

    def host(self) -> Shelf:
        """See `Drafter.host`."""
        return Shelf(self)

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        words = jax.lax.bitcast_convert_type(p.key, jnp.int32)
        asked = jnp.concatenate([p.text, p.length[:, None], words, p.done[:, None].astype(jnp.int32)], axis=1)
        wanted = jax.ShapeDtypeStruct((len(asked), 3, self.nodes), jnp.int32)
        made = answered(models["hosts"][self].answers, wanted, asked, alone=models["model"].spec.partition.trivial)
        return Tree(made[:, 0], made[:, 1], None, made[:, 2] > 0), p.side["trie"]


PARTS = {"trie": Lookahead}
