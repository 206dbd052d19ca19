"""Clocks of speculative decoding: what a schedule takes, from the costs of a step and from what was accepted.

They map traces to time and never touch tokens. a is the chance that a draft is accepted, g the drafts of a round. All
costs are in one unit of time, for example seconds.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """draft: one step of the draft; target: a pass of the target over one token; node: each further token of it; more:
    what a pass over more than one token takes once, however many; exchange: what two devices need to tell each other a
    step's result."""

    draft: float
    target: float
    node: float = 0.0
    more: float = 0.0
    exchange: float = 0.0

    def verify(self, tokens: float) -> float:
        """A pass of the target over `tokens` tokens."""
        return self.target + self.node * (tokens - 1) + (self.more if tokens > 1 else 0.0)


class PearlStep(NamedTuple):
    """post: whether the step verified all pending drafts; before, after: tokens of the text, pending drafts counted;
    accepted: drafts that this step accepted; rejected: whether it rejected one."""

    post: bool
    before: int
    after: int
    accepted: int
    rejected: bool


def fit_target(tokens: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """(target, node) of `StepCosts` that fit measured passes best, in squares, neither negative."""
    design = np.stack([np.ones(len(tokens)), np.asarray(tokens, np.float64) - 1], axis=1)
    return tuple(float(value) for value in optimize.nnls(design, np.asarray(times, np.float64))[0])


def tokens_per_round(a: float, g: int) -> float:
    """Expected tokens of a round: sum_{j<=g} a^j = (1 - a^(g+1)) / (1 - a), the token after the drafts included."""
    return float(sum(a**j for j in range(g + 1)))


def tokens_per_round_without_bonus(a: float, g: int) -> float:
    """sum_{j<g} a^j: codes that draw no token where all drafts are accepted (eBay's batched one)."""
    return float(sum(a**j for j in range(g)))


def round_lengths(a: float, g: int) -> np.ndarray:
    """P(n tokens) `[g + 1]` for n = 1..g+1: a^(n-1) (1 - a), and a^g for n = g + 1."""
    return np.array([a**n * (1 - a) for n in range(g)] + [a**g])


def serial_speedup(a: float, g: int, costs: StepCosts) -> float:
    """Of draft and target in turn, beside the target alone: tokens of a round over its time, times `target`."""
    return tokens_per_round(a, g) * costs.target / (g * costs.draft + costs.verify(g + 1))


def tree_speedup(tokens: float, levels: int, nodes: int, costs: StepCosts) -> float:
    """Of a tree of `nodes` nodes (root included) drafted in `levels` steps that gives `tokens` tokens a round.

    Dovetail's clock is this one with a target whose cost grows with the nodes (Zhang et al. 2024, arXiv:2412.18934).
    """
    return tokens * costs.target / (levels * costs.draft + costs.verify(nodes))


def best_length(stay: Sequence[float], seconds: Sequence[float]) -> int:
    """The g of 0..most whose rounds give the most tokens a second, 1 + sum_{j<=g} stay_j of them; of equal ones the
    smallest.

    Args:
      stay: `[most]` the chance that at least j = 1..most drafts stay, where so many are written.
      seconds: `[most + 1]` of a round with 0..most drafts.
    """
    tokens = 1 + np.cumsum([0.0, *stay])
    return int(np.argmax(tokens / np.asarray(seconds)))


def best_drafts(a: float, costs: StepCosts, most: int) -> int:
    """The g of 0..most with the largest serial speed-up; of equal ones the smallest: `best_length` at chances a^j."""
    stay = [a**j for j in range(1, most + 1)]
    return best_length(stay, [g * costs.draft + costs.verify(g + 1) for g in range(most + 1)])


def pearl_tokens_per_step(a: float, g: int) -> float:
    """1 / ((1 - a) (1 + a / (1 - a^g))): PEARL's tokens per step, g at a = 1 (Liu et al. 2024, arXiv:2408.11850)."""
    if a == 1:
        return float(g)
    return 1 / ((1 - a) * (1 + a / (1 - a**g)))


def pearl_steps_of_run(run: int, g: int) -> int:
    """Steps that a run of `run` accepted drafts and the rejection behind it take: 1, or 2 + floor((run - 1) / g)."""
    return 1 if run == 0 else 2 + (run - 1) // g


def pearl_speedup(a: float, g: int, costs: StepCosts) -> float:
    """Of PEARL beside the target alone: a step takes the longer of g draft steps and one pass, and the exchange."""
    step = max(g * costs.draft, costs.verify(g)) + costs.exchange
    return pearl_tokens_per_step(a, g) * costs.target / step


def pearl_trace(accept: Callable[[int], bool], g: int, start: int, end: int) -> list[PearlStep]:
    """PEARL's steps from a text of `start` tokens until it has `end`, pending drafts counted.

    accept(position) says whether the draft at this position of the text is accepted. In a step the draft proposes g
    tokens while the target does one pass. Before (`post` False) the pass checks the first of them: accepted, all g are
    appended; rejected, the target's own token is. After (`post`) it checks the g - 1 pending drafts and the first of
    the next g: all accepted, the next g are appended; rejected at n, the text is cut there and gets the target's token.
    """
    steps, length, post = [], start, False
    while length < end:
        first = length - g + 1 if post else length
        checked = g if post else 1
        good = 0
        while good < checked and accept(first + good):
            good += 1
        rejected = good < checked
        after = first + good + 1 if rejected else length + g
        steps.append(PearlStep(post, length, after, good, rejected))
        length, post = after, not rejected
    return steps


def pearl_verified(steps: Sequence[PearlStep], g: int) -> int:
    """Tokens of the text that the target has seen at the end: a text that ends after an accepted step has g - 1
    pending.

    The released code returns these, too; they need not be what the target would have written.
    """
    last = steps[-1]
    return last.after if last.rejected else last.after - (g - 1)


def accepted_runs(steps: Iterable[PearlStep]) -> list[int]:
    """Drafts accepted in a row before each rejection."""
    runs, run = [], 0
    for step in steps:
        run += step.accepted
        if step.rejected:
            runs.append(run)
            run = 0
    return runs


def serial_time(drafts: Iterable[int], costs: StepCosts) -> float:
    """Of rounds with so many drafts each, one after another."""
    return sum(g * costs.draft + costs.verify(g + 1) for g in drafts)


def pearl_time(steps: Sequence[PearlStep], g: int, costs: StepCosts) -> float:
    """Of PEARL's steps."""
    return len(steps) * (max(g * costs.draft, costs.verify(g)) + costs.exchange)


def llmcad_time(drafts: Sequence[int], all_accepted: Sequence[bool], costs: StepCosts) -> float:
    """Of LLMCad's rounds: the target streams its weights (its cost is `target`), and drafting goes on meanwhile.

    What was drafted during a verification is kept where all its drafts were accepted, so that the next round drafts as
    many steps less, at most all of its own (Xu et al. 2023, arXiv:2309.04255).
    """
    total, kept = 0.0, 0
    for g, good in zip(drafts, all_accepted, strict=True):
        verify = costs.verify(g + 1)
        total += max(0, g - kept) * costs.draft + verify
        kept = math.floor(verify / costs.draft) if good else 0
    return total
