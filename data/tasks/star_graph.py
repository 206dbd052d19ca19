"""Path finding on star graphs: edges in random order, a start and a goal, and the path between them as the answer."""

import dataclasses
from typing import ClassVar

import numpy as np

from data.tasks import answers, draws


@dataclasses.dataclass(frozen=True)
class StarGraph:
    """`arms` arms of `least` to `most` nodes around a centre: edges, ASK, centre, goal, THEN, path, END.

    An edge is its two nodes, the one nearer to the centre first. The goal is the end of a random arm; the answer is
    that arm from the centre outwards (`reverse`: from the goal inwards, which each edge tells). The first node of the
    forward path can only be found from the far end: what next-token prediction does not learn (Bachmann and Nagarajan
    2024); with least < most the answer's length is unknown, too (ILM, Patel et al. 2025). Symbols: `nodes` names, ASK,
    THEN, END, then `pads` pads; `room`, `pads`: see `answers.asked`.
    """

    arms: int = 3
    least: int = 4
    most: int = 4
    nodes: int = 20
    reverse: bool = False
    room: int = 0
    pads: int = 0

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    @property
    def num_symbols(self) -> int:
        return self.nodes + 3 + self.pads

    @property
    def end(self) -> int:
        """The symbol that ends an answer."""
        return self.nodes + 2

    def check(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least={self.least} lies above most={self.most}; use least={self.most}.")
        needed = 1 + self.arms * self.most
        if self.nodes < needed:
            raise ValueError(f"nodes={self.nodes} are fewer than the {needed} of the largest graph; use {needed}.")
        answers.check_room(self.room, self.most)

    def least_length(self) -> int:
        return 2 * self.arms * self.most + 4 + (self.room or self.most + 1) - 1

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        arms, most = self.arms, self.most
        names = draws.distinct(seed, row, "names", 1 + arms * most, self.nodes)
        B, centre = len(names), names[:, :1]
        size = self.least + draws.integers(seed, row, "sizes", arms, most - self.least + 1)
        tree = names[:, 1:].reshape(B, arms, most)
        tree = np.where(np.arange(most) < size[..., None], tree, -1)
        parent = np.concatenate([np.broadcast_to(centre[:, None], (B, arms, 1)), tree[:, :, :-1]], axis=2)
        edges = np.stack([np.where(tree < 0, -1, parent), tree], axis=-1).reshape(B, arms * most, 2)
        order = draws.permutation(seed, row, "order", arms * most)
        edges = np.take_along_axis(edges, order[..., None], axis=1).reshape(B, -1)
        arm = draws.integers(seed, row, "arm", 1, arms)[:, 0]
        path = tree[np.arange(B), arm]
        goal = path[np.arange(B), size[np.arange(B), arm] - 1][:, None]
        ask, then = np.full((B, 1), self.nodes), np.full((B, 1), self.nodes + 1)
        prompt = answers.joined(edges, ask, centre, goal, then)
        answer = path[:, ::-1] if self.reverse else path
        return answers.asked(prompt, answer, length + 1, end=self.end, room=self.room, pads=self.pads)
