"""Expert caches: which experts stay in fast memory, simulated over the requests of a trace.

A request is (layer, expert). A hit finds its expert in the cache, a miss loads it. What a layer computes never depends
on the policy. Source of the setting: ExpertFlow (He et al. 2024, arXiv:2410.17954).
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.routing import traces

Request = tuple[int, int]


class Served(NamedTuple):
    """hits + misses = requests; `loads` counts what was brought in, prefetched experts too."""

    hits: int
    misses: int
    loads: int

    @property
    def rate(self) -> float:
        """Share of the requests that were hits; 0 of none."""
        return self.hits / max(1, self.hits + self.misses)


def requests(trace: Any, experts: int, batch: int = 1) -> list[Request]:
    """Requests of a trace `[N, L, K]` in order: of each batch of tokens and layer every expert chosen, once, by id."""
    trace = traces.checked(trace, experts)
    found = []
    for start in range(0, len(trace), batch):
        for layer in range(trace.shape[1]):
            chosen = np.unique(trace[start : start + batch, layer])
            found += [(layer, int(e)) for e in chosen if e >= 0]
    return found


def lru(asked: Sequence[Request], slots: int) -> Served:
    """The expert goes whose last request is longest ago. Misses never rise with more slots (a stack policy)."""
    held, hits = collections.OrderedDict(), 0
    for request in asked:
        if request in held:
            hits += 1
            held.move_to_end(request)
        elif slots:
            if len(held) == slots:
                held.popitem(last=False)
            held[request] = None
    return Served(hits, len(asked) - hits, len(asked) - hits)


def lfu(asked: Sequence[Request], slots: int) -> Served:
    """The expert goes that was requested least often since the start; of equal ones, whose last request is oldest."""
    held, count, last, hits = set(), collections.Counter(), {}, 0
    for now, request in enumerate(asked):
        count[request] += 1
        last[request] = now
        if request in held:
            hits += 1
        elif slots:
            if len(held) == slots:
                held.remove(min(held, key=lambda r: (count[r], last[r])))
            held.add(request)
    return Served(hits, len(asked) - hits, len(asked) - hits)


def belady(asked: Sequence[Request], slots: int) -> Served:
    """The expert goes whose next request is farthest: no policy that loads on request misses less."""
    after, upcoming = [len(asked)] * len(asked), {}
    for now in range(len(asked) - 1, -1, -1):
        after[now] = upcoming.get(asked[now], len(asked))
        upcoming[asked[now]] = now
    held, hits = {}, 0
    for now, request in enumerate(asked):
        if request in held:
            hits += 1
        elif slots and len(held) == slots:
            del held[max(held, key=lambda r: (held[r], r))]
        if request in held or slots:
            held[request] = after[now]
    return Served(hits, len(asked) - hits, len(asked) - hits)


def predicted(asked: Sequence[Sequence[Request]], guessed: Sequence[Sequence[Request]], slots: int) -> Served:
    """Experts of each pass are fetched by prediction before it, and corrected by what is asked.

    Args:
      asked: the requests of each pass through the layers, in order.
      guessed: the requests predicted for each pass, in order of need.
      slots: places; before a pass the first `slots` different predicted experts are brought in. A place is freed from
        an expert that the pass was not predicted to need any more, oldest request first, then from the one needed last.

    Returns:
      Hits are requests that found their expert. With a perfect prediction and as many slots as a pass needs, every
      request hits, and each expert is loaded before it is needed.
    """
    held, hits, loads, total = collections.OrderedDict(), 0, 0, 0

    def bring(request: Request, needed: list[Request]) -> None:
        if len(held) >= slots:
            spare = [r for r in held if r not in needed]
            held.pop(spare[0] if spare else max(held, key=needed.index))
        held[request] = None

    for wanted, told in zip(asked, guessed, strict=True):
        told = list(dict.fromkeys(told))
        for request in told[:slots]:
            if request not in held:
                loads += 1
                bring(request, told[:slots])
        for now, request in enumerate(wanted):
            total += 1
            left = [r for r in told if r in wanted[now:] or r not in wanted[:now]]
            if request in held:
                hits += 1
                held.move_to_end(request)
            elif slots:
                loads += 1
                bring(request, left)
    return Served(hits, total - hits, loads)


POLICIES = {"lru": lru, "lfu": lfu, "belady": belady}


def by_frequency(trace: Any, experts: int, count: int) -> list[Request]:
    """The `count` most frequent requests of a trace, the more frequent first; the simplest prediction of a pass."""
    load = traces.load(trace, experts)
    order = np.argsort(-load.ravel(), kind="stable")[:count]
    return [(int(i) // experts, int(i) % experts) for i in order if load.ravel()[i]]
