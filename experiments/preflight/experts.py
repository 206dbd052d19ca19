"""What the preflight knows of mixtures of experts beside what their channel says: the loop around it, and its start."""

from collections.abc import Iterator
from typing import Any

from models.facts import listed


def problems(config: Any) -> Iterator[str]:
    """A router that looks ahead of what is predicted, and a load over the whole batch where that comes in pieces."""
    from experiments.program import objective
    from models.experts.options import ROUTERS

    if "moe" not in listed(config.model.channel):
        return
    options, pieces = config.model.moe, config.train.accumulation
    if not ROUTERS[options.router].causal and objective(config.objective).causal:
        yield (
            f"model.moe.router={options.router!r} looks at later tokens, and objective={config.objective!r} predicts "
            "them; use model.moe.router='softmax_after'."
        )
    if options.balance and pieces > 1 and options.balance_scope == "global":
        yield (
            f"train.accumulation={pieces} shows a layer a part of the batch at a time, and "
            "model.moe.balance_scope='global' is of all of it; use model.moe.balance_scope='accumulated'."
        )


def start_problems(config: Any) -> Iterator[str]:
    """A dense model that cannot begin as this mixture; of its run the config alone is read."""
    start = config.init.upcycle_from
    if not start or "moe" not in listed(config.model.channel):
        return
    from experiments.preflight import starts
    from models.experts import dense_start

    yield from starts.problems("upcycle_from", start, config, dense_start.problems)
