"""What the preflight knows of mixtures of experts beside what their channel says: the loop around it, and its start."""

import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.settings.errors import ConfigError
from experiments.workdir.saved import holds_checkpoint, saved_config
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
    if other := [name for name in ("warm_start", "grow_from", "transplant", "pretrained") if config.init[name]]:
        yield f"init.upcycle_from={start!r} and init.{other[0]} both start the run; use init.{other[0]}=''."
    elif not holds_checkpoint(start):
        yield f"init.upcycle_from={start!r} holds no finished checkpoint; give the --workdir of a trained model."
    else:
        from models.experts import dense_start
        from models.spec import Spec

        try:
            saved = saved_config(pathlib.Path(start).expanduser())
        except ConfigError as error:
            yield str(error).replace("--workdir=", "init.upcycle_from=")
            return
        yield from dense_start.problems(*(Spec.from_config(c.model.to_dict(), vocab_size=1) for c in (saved, config)))
