"""What the preflight says about a run that starts from a smaller model, grown."""

import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.settings.errors import ConfigError
from experiments.workdir.saved import holds_checkpoint, saved_config


def problems(config: Any) -> Iterator[str]:
    """What the preflight says about growth; of the run to grow it reads the config alone."""
    init = config.init
    if init.transplant and (init.grow_from or init.warm_start):
        yield f"init.transplant={init.transplant!r} is not the only start of the run; use init.transplant=''."
    if init.grow_from and init.warm_start:
        yield f"init.grow_from={init.grow_from!r} and init.warm_start both start the run; use init.warm_start=''."
    elif init.grow_from and holds_checkpoint(init.grow_from):
        from models import growth
        from models.spec import Spec

        try:
            saved = saved_config(pathlib.Path(init.grow_from).expanduser())
        except ConfigError as error:
            yield str(error).replace("--workdir=", "init.grow_from=")
            return
        yield from growth.problems(*(Spec.from_config(c.model.to_dict(), vocab_size=1) for c in (saved, config)))
        if init.grow_optimizer == "carry":
            yield from _carry_problems(config.optimizer, saved.optimizer)


def _carry_problems(new: Any, old: Any) -> Iterator[str]:
    from experiments.program import optimizers

    if new.name not in optimizers.CARRIED:
        yield (
            f"optimizer.name={new.name!r} has a state that does not grow; use init.grow_optimizer='reset', "
            f"or one of {', '.join(optimizers.CARRIED)}."
        )
    elif (new.name, bool(new.clip)) != (old.name, bool(old.clip)):
        yield (
            f"optimizer.name={new.name!r} with optimizer.clip={new.clip} cannot carry the state of {old.name!r} with "
            f"clip={old.clip}; use init.grow_optimizer='reset'."
        )
