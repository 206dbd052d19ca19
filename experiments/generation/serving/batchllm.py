"""BatchLLM: a batch of prompts that are all known, read so that beginnings that they share are read once (Zheng et al.
2024, arXiv:2412.03594)."""

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the prefix tree, its edges merged: what is read once for all prompts below.

    Attributes:
      tokens: of this node, behind those of its father.
      depth: tokens from the beginning to its end.
      ends: prompts, by number, that end here.
      children: in the order of their first tokens' appearance.
    """

    tokens: tuple[int, ...]
    depth: int
    ends: tuple[int, ...]
    children: tuple["Node", ...]

    @property
    def prompts(self) -> tuple[int, ...]:
        """Those at or below it."""
        return self.ends + tuple(i for child in self.children for i in child.prompts)

    def walk(self) -> Iterator["Node"]:
        """It and all below it, fathers first."""
        yield self
        for child in self.children:
            yield from child.walk()


def prefix_tree(prompts: Sequence[Sequence[int]]) -> Node:
    """The tree of all beginnings, single paths merged into one node; its root has no tokens."""
    return _node(prompts, list(range(len(prompts))), 0, 0)


def _node(prompts: Sequence[Sequence[int]], members: list[int], begin: int, end: int) -> Node:
    """The node of prompts that agree in `end` tokens, of which the first `begin` are its father's."""
    shortest, first = min((len(prompts[i]) for i in members), default=0), prompts[members[0]] if members else ()
    while 0 < end < shortest and all(prompts[i][end] == first[end] for i in members):
        end += 1
    branches: dict[int, list[int]] = {}
    for i in members:
        if len(prompts[i]) > end:
            branches.setdefault(prompts[i][end], []).append(i)
    ends = tuple(i for i in members if len(prompts[i]) == end)
    children = tuple(_node(prompts, group, end, end + 1) for group in branches.values())
    return Node(tuple(first[begin:end]), end, ends, children)


def trie_nodes(prompts: Sequence[Sequence[int]]) -> int:
    """|{beginnings of the prompts, not empty}|: tokens that are read where every shared beginning is read once."""
    return sum(len(node.tokens) for node in prefix_tree(prompts).walk())


def all_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """sum of lengths: tokens that are read where nothing is shared."""
    return sum(map(len, prompts))


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts, by number, that share their first `prefix` tokens: read once, kept until the group has ended."""

    prefix: int
    prompts: tuple[int, ...]


def one_level_tokens(prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> int:
    """sum over groups of prefix + sum over its prompts of (length - prefix): tokens that are read."""
    return sum(g.prefix + sum(len(prompts[i]) - g.prefix for i in g.prompts) for g in groups)


def one_level(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Groups with one shared beginning each that read the fewest tokens, by dynamic programming over the tree.

    F(v, a) is the least that is read for the prompts at and below v, where a is the nearest node above that opens a
    group: F(v, a) = min(depth(v) + S(v, v), S(v, a)), S(v, a) = sum_ends (length - depth(a)) + sum_children F(c, a).
    Of equal ones the fewer groups. A prompt that shares nothing is in the group with prefix 0.
    """
    root, memo = prefix_tree(prompts), {}

    def below(node: Node, depth: int) -> tuple[int, int]:
        """(tokens, groups opened) below a node where a group is open at `depth`."""
        parts = [best(child, depth) for child in node.children]
        tokens = sum(len(prompts[i]) - depth for i in node.ends)
        return tokens + sum(part[0] for part in parts), sum(part[1] for part in parts)

    def best(node: Node, depth: int) -> tuple[int, int, bool]:
        """The same with the node, and whether it opens one."""
        if (id(node), depth) not in memo:
            tokens, groups = below(node, node.depth)
            memo[id(node), depth] = min((*below(node, depth), False), (node.depth + tokens, groups + 1, True))
        return memo[id(node), depth]

    found: list[Group] = []

    def collect(node: Node, depth: int, open_group: list[int]) -> None:
        """Puts the prompts of a node into the group open at `depth`, or into its own."""
        mine = depth < node.depth and best(node, depth)[2]
        members, depth = ([], node.depth) if mine else (open_group, depth)
        members.extend(node.ends)
        for child in node.children:
            collect(child, depth, members)
        if mine:
            found.append(Group(depth, tuple(members)))

    alone: list[int] = []
    collect(root, 0, alone)
    return found + ([Group(0, tuple(alone))] if alone else [])


def one_level_local(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Groups by the paper's local rule, bottom up: a node's child leaves it as a group of its own, with the node's
    tokens before its own, where (prompts(child) - 1) tokens(child) > tokens(node), tokens behind the node's father.

    Near the exact form (`one_level`), never better: what was merged below is not looked at again.
    """
    root = prefix_tree(prompts)
    groups = [Group(depth, members) for child in root.children for depth, members in _local(child)]
    rest = root.ends + tuple(i for g in groups if len(g.prompts) == 1 for i in g.prompts)
    return [g for g in groups if len(g.prompts) > 1] + ([Group(0, tuple(sorted(rest)))] if rest else [])


def _local(node: Node) -> list[tuple[int, tuple[int, ...]]]:
    """(depth, prompts) of the groups at and below a node; the last is the node's own."""
    own, kept = list(node.ends), []
    for child in node.children:
        for depth, members in _local(child):
            if (len(members) - 1) * (depth - node.depth) > len(node.tokens):
                kept.append((depth, members))
            else:
                own.extend(members)
    return [*kept, (node.depth, tuple(own))] if own else kept


def ratio(prompts: Sequence[int], answers: Sequence[int], group: Group) -> float:
    """sum of answers / tokens read, of a group: prompts, answers are lengths, `[n]`; inf where nothing is read."""
    read = group.prefix + sum(prompts[i] - group.prefix for i in group.prompts)
    return sum(answers[i] for i in group.prompts) / read if read else float("inf")


def group_order(prompts: Sequence[int], answers: Sequence[int], groups: Sequence[Group]) -> list[int]:
    """Numbers of the groups by `ratio`, the largest first: long answers begin while there are prompts left to read."""
    return sorted(range(len(groups)), key=lambda g: -ratio(prompts, answers, groups[g]))


def fitting(held: float, needs: Sequence[float], memory: float) -> int:
    """How many of the next requests join: the largest n with held + sum_{i<n} needs_i <= memory, whatever their number.

    Where nothing is held the first always joins.
    """
    for count, need in enumerate(needs):
        held += need
        if held > memory and held > need:
            return count
    return len(needs)


def group_memory(prompts: Sequence[int], answers: Sequence[int], group: Group) -> int:
    """prefix + sum (prompt - prefix + answer): tokens that a group holds at most, its beginning once."""
    return group.prefix + sum(prompts[i] - group.prefix + answers[i] for i in group.prompts)
