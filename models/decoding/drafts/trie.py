"""A trie of what followed each token, in prompts and outputs (Zhao et al. 2023, "Lookahead", arXiv:2312.12728); host.

For every token there is a tree of the windows of `branch` tokens that came after it. A node counts how often it came in
the prompt of each request and in any output. A query looks up the last tokens of a text and gives the branches found as
one tree of drafts.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

OUTPUT = -1  # The place of outputs among the counts; requests have numbers from 0 on.


class Found(NamedTuple):
    """token, parent `[n]`: drafts with the last token of the text as node 0 of parent -1; sizes: how many nodes came
    in this request's prompt and in outputs."""

    token: list[int]
    parent: list[int]
    sizes: tuple[int, int]


@dataclasses.dataclass(slots=True)
class Node:
    """Counts by request, `OUTPUT` for outputs, and what followed, by token."""

    counts: dict[int, float] = dataclasses.field(default_factory=dict)
    children: dict[int, "Node"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A node's weight is (1 - output) f_prompt + output f_output; nodes below all three `least` are left out."""

    request: int
    output: float

    def of(self, node: Node) -> tuple[float, float, float]:
        """(f_prompt, f_output, their mixture)."""
        prompt, out = node.counts.get(self.request, 0.0), node.counts.get(OUTPUT, 0.0)
        return prompt, out, (1.0 - self.output) * prompt + self.output * out


Counts = Iterator[tuple[float, float, float]]
Least = tuple[float, float, float]
NOTHING = 1e9


def largest(counts: Counts, size: int) -> Least:
    """The least mixture of the `size` largest, so that about so many nodes are left; all with a weight if there are no
    more. counts: largest mixture first; no more of them are looked at."""
    most = [mix for _, _, mix in itertools.islice(counts, size + 1)]
    return NOTHING, NOTHING, math.ulp(0.0) if len(most) <= size else most[size - 1]


def released(least_prompt: int, least_output: int) -> Callable[[Counts, int], Least]:
    """The rule of the authors' code in mode "mix": with more than `size` nodes and both numbers 0 it leaves nothing.

    A number above 0 lets in the nodes that reach the count of so many of the most frequent ones in prompt or output.
    With no more than `size` nodes it takes all, those of other requests' prompts, too, which weigh 0.
    """

    def rule(counts: Counts, size: int) -> Least:
        counts = list(counts)
        if len(counts) <= size:
            return NOTHING, NOTHING, 0.0
        prompts = sorted((count[0] for count in counts), reverse=True)
        outputs = sorted((count[1] for count in counts), reverse=True)
        return (
            prompts[least_prompt - 1] if least_prompt else NOTHING,
            outputs[least_output - 1] if least_output else NOTHING,
            NOTHING,
        )

    return rule


class Trie:
    """The trees of all tokens. `insert` what was read or written, `query` for drafts, `close` a request at its end."""

    def __init__(self, *, most_nodes: int = 65536, most_outputs: int = 512, squeeze_after: int = 1024) -> None:
        """A tree is squeezed when it has more than `most_nodes` nodes, or `most_outputs` made by outputs; trees are
        looked at once `squeeze_after` of them have changed."""
        self.trees: dict[int, Node] = {}
        self.sizes: dict[int, list[int]] = {}  # By token: nodes, and those that outputs made.
        self.limits, self.squeeze_after = (most_nodes, most_outputs), squeeze_after
        self.changed: set[int] = set()

    def insert(self, tokens: Sequence[int], branch: int, request: int = OUTPUT) -> None:
        """Counts every window of `branch` tokens behind each token but the last: of a request's prompt, or of an
        output."""
        for i in range(len(tokens) - 1):
            self._count(tokens[i], tokens[i + 1 : i + 1 + branch], request)

    def _count(self, token: int, window: Sequence[int], request: int) -> None:
        node = self.trees.setdefault(token, Node())
        size = self.sizes.setdefault(token, [0, 0])
        for next_ in window:
            if next_ not in node.children:
                node.children[next_] = Node()
                size[0] += 1
                size[1] += request == OUTPUT
            node = node.children[next_]
            node.counts[request] = node.counts.get(request, 0.0) + 1.0
        self.changed.add(token)

    def query(
        self,
        last: Sequence[int],
        *,
        size: int = 64,
        branch: int = 12,
        request: int = 0,
        output_weight: float = 1e-4,
        least: Callable[[Counts, int], Least] = largest,
    ) -> Found:
        """Drafts behind the tokens `last` (the last ones of the text): all of them are looked up, then all but the
        first...

        The first look-up that gives `branch` nodes wins, else the last one that found its tree.

        Args:
          size: nodes at most, the root among them.
          branch: their depth at most.
          least: which nodes are left where there are more than `size`.
        """
        found = Found([last[-1]], [-1], (0, 0))
        if size <= 1 or branch == 0:
            return found
        weights = Weights(request, output_weight)
        for i, token in enumerate(last):
            if token in self.trees:
                found = self._look_up(self.trees[token], last[i + 1 :], last[-1], (size, branch), weights, least)
                if len(found.token) >= branch:
                    break
        return found

    def _look_up(self, node: Node, path: Sequence[int], root: int, limits: tuple, weights: Weights, least) -> Found:
        token, parent, sizes = [root], [-1], [0, 0]
        for step in path:
            node = node.children.get(step)
            if node is None or not any(weights.of(node)[:2]):
                return Found(token, parent, (0, 0))
        size, branch = limits
        bar = least(_counts(node, weights), size)

        def grow(node: Node, above: int, left: int) -> None:
            if left == 0:
                return
            for next_, child in sorted(node.children.items(), key=lambda item: -weights.of(item[1])[2]):
                if len(token) >= size:
                    return
                count = weights.of(child)
                if all(value < floor for value, floor in zip(count, bar, strict=True)):
                    continue
                token.append(next_)
                parent.append(above)
                sizes[0] += count[0] > 0
                sizes[1] += count[1] > 0
                grow(child, len(token) - 1, left - 1)

        grow(node, 0, branch)
        return Found(token, parent, (sizes[0], sizes[1]))

    def close(self, request: int) -> None:
        """The end of a request: its prompt's counts become 0, and trees that grew too large are squeezed."""
        for tree in self.trees.values():
            _forget(tree, request)
        if len(self.changed) >= self.squeeze_after:
            for token in self.changed:
                if any(size > limit for size, limit in zip(self.sizes[token], self.limits, strict=True)):
                    self.squeeze(token)
            self.changed.clear()

    def squeeze(self, token: int) -> None:
        """Halves every output count of this token's tree, and drops nodes whose count is at most 1 with all below
        them."""
        _squeeze(self.trees[token])
        left = sum(1 for _ in _nodes(self.trees[token]))
        self.sizes[token] = [left, left]


def _nodes(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from _nodes(child)


def _counts(node: Node, weights: Weights) -> Iterator[tuple[float, float, float]]:
    """Of all nodes below that this request may use, the largest mixture first; no node's is above its parent's.

    What no one counted hides what is below it.
    """
    heap: list[tuple] = []
    order = itertools.count()

    def add(above: Node) -> None:
        for child in above.children.values():
            count = weights.of(child)
            if count[0] > 0 or count[1] > 0:
                heapq.heappush(heap, (-count[2], next(order), count, child))

    add(node)
    while heap:
        *_, count, child = heapq.heappop(heap)
        yield count
        add(child)


def _forget(node: Node, request: int) -> None:
    for child in node.children.values():
        if child.counts.get(request):
            child.counts[request] = 0.0
            _forget(child, request)


def _squeeze(node: Node) -> None:
    for token, child in list(node.children.items()):
        if child.counts.get(OUTPUT, 0.0) > 1.0:
            child.counts[OUTPUT] *= 0.5
            _squeeze(child)
        else:
            del node.children[token]


class Stream:
    """Outputs that come in pieces: a window is counted once all of its `branch` tokens are there, the rest at the
    end."""

    def __init__(self, trie: Trie, branch: int) -> None:
        self.trie, self.branch, self.waiting = trie, branch, []

    def insert(self, tokens: Sequence[int], *, final: bool = False) -> None:
        """Adds tokens of one output; `final` counts the windows that stayed shorter, too."""
        self.waiting.extend(tokens)
        many = len(self.waiting)
        for i in range(many - (1 if final else self.branch)):
            self.trie._count(self.waiting[i], self.waiting[i + 1 : i + 1 + self.branch], OUTPUT)
        self.waiting = [] if final else self.waiting[max(0, many - self.branch) :]
