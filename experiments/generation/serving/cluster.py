"""How many machines read and how many write: Splitwise's search over the sizes of its two pools, by simulation
(Patel et al. 2023, arXiv:2311.18677, sections IV and V).

    served = lambda p, t: simulate(requests, pools(p, t, machine), route=reading, transfer=...)
    cheapest(lambda p, t: meets(served(p, t), alone), most=(8, 8), price=(2.35, 1.0))
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.generation.serving.jobs import Asked
from experiments.generation.serving.simulator import Log, Machine

Meets = Callable[[int, int], bool]
"""(machines that read, machines that write) -> whether they keep the limits."""

LIMITS: Mapping[str, tuple[float, float, float]] = {
    "first": (2.0, 3.0, 6.0), "gap": (1.25, 1.5, 5.0), "whole": (1.25, 1.5, 5.0),
}  # fmt: skip
"""The paper's: how many times slower than alone the median, the 90th and the 99th percentile of the requests may be, in
the time to the first token, the mean gap, and the time to the last token."""


def pools(prompt: int, token: int, make: Callable[[], Machine]) -> list[Machine]:
    """Fresh machines: `prompt` of the pool that reads, then `token` of the one that writes."""
    made = [make() for _ in range(prompt + token)]
    for number, machine in enumerate(made):
        machine.pool = "prompt" if number < prompt else "token"
    return made


def reading(machines: Sequence[Machine], request: Asked) -> int:
    """Where a request goes: the machine of the pool that reads with the fewest pending tokens, of equal ones the
    first."""
    there = [i for i, machine in enumerate(machines) if machine.pool == "prompt"]
    return min(there, key=lambda i: machines[i].pending)


def times(log: Log) -> dict[str, dict[int, float]]:
    """By request, as `LIMITS` names them: time to the first token, mean gap (of those with two tokens), time to the
    last."""
    served = log.served.items()
    return {
        "first": {id: s.first for id, s in served},
        "gap": {id: (s.times[-1] - s.times[0]) / (len(s.times) - 1) for id, s in served if len(s.times) > 1},
        "whole": {id: s.times[-1] - s.asked.arrival for id, s in served},
    }


def slowdowns(log: Log, alone: Log) -> dict[str, np.ndarray]:
    """`times` of each request over those of the same request in `alone`, where nothing else was served, by name."""
    here, there = times(log), times(alone)
    return {name: np.asarray([here[name][id] / there[name][id] for id in here[name]]) for name in here}


def meets(log: Log, alone: Log, limits: Mapping[str, tuple[float, float, float]] = LIMITS) -> bool:
    """Whether all percentiles (50, 90, 99) of `slowdowns` are within `limits`; of no request none is broken."""
    found = slowdowns(log, alone)
    return all(
        not len(found[name]) or bool((np.quantile(found[name], (0.5, 0.9, 0.99)) <= most).all())
        for name, most in limits.items()
    )


def apart(requests: list[Asked], simulated: Callable[[list[Asked]], Log]) -> Log:
    """A log of each request alone: `simulated` of one request at a time, with the times of that run."""
    made = Log()
    for request in requests:
        made.served |= simulated([request]).served
    return made


def price_of(prompt: int, token: int, price: tuple[float, float]) -> float:
    """prompt price[0] + token price[1]: of money, power, or space."""
    return prompt * price[0] + token * price[1]


def cheapest(
    enough: Meets, most: tuple[int, int], price: tuple[float, float] = (1.0, 1.0), least: tuple[int, int] = (1, 1)
) -> tuple[int, int] | None:
    """argmin over sizes p, t from `least` to `most` with enough(p, t) of `price_of`; None where none is enough.

    Sizes are tried by price, of equal prices the fewer that read first, and no dearer one is simulated.
    """
    sizes = itertools.product(range(least[0], most[0] + 1), range(least[1], most[1] + 1))
    ordered = sorted(sizes, key=lambda size: (price_of(*size, price), size))
    return next((size for size in ordered if enough(*size)), None)


def fastest(
    rate: Callable[[int, int], float], budget: float, price: tuple[float, float] = (1.0, 1.0)
) -> tuple[tuple[int, int], float]:
    """argmax over sizes p, t >= 1 with price_of(p, t) <= budget of rate(p, t), and that rate.

    Of equal ones the cheaper. Only sizes to which no machine can be added are tried: more are taken to be no slower.
    Errors: ValueError where the budget buys no machine of each pool.
    """
    sizes = []
    for prompt in range(1, int((budget - price[1]) // price[0]) + 1):
        token = int((budget - prompt * price[0]) // price[1])
        if not sizes or token < sizes[-1][1]:
            sizes.append((prompt, token))
        else:  # As many that write, and one more that reads.
            sizes[-1] = (prompt, token)
    if not sizes:
        raise ValueError(f"budget={budget} buys no machine of each pool; give at least {price[0] + price[1]}.")
    rates = {size: rate(*size) for size in sizes}
    best = max(sizes, key=lambda size: (rates[size], -price_of(*size, price)))
    return best, rates[best]


def highest_rate(enough: Callable[[float], bool], low: float, high: float, rounds: int = 12) -> float:
    """The largest rate of arrivals with enough(rate), by halving [low, high] so often.

    enough: true up to some rate. `low` where it holds for none that was tried.
    """
    if enough(high):
        return high
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
