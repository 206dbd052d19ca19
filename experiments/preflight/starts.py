"""What keeps a run from beginning as another model, made of a trained one; of that run the config alone is read."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from experiments.settings.errors import ConfigError
from experiments.workdir.saved import holds_checkpoint, saved_config
from models.spec import Spec


def others(config: Any) -> list[str]:
    """The other keys of `config.init` that start the run."""
    return [name for name in ("warm_start", "grow_from", "transplant", "pretrained") if config.init[name]]


def problems(key: str, start: str, config: Any, between: Callable[[Spec, Spec], Iterator[str]]) -> Iterator[str]:
    """Sentences about a start that the key `init.KEY` names.

    Args:
      key: without "init.".
      start: the workdir of the trained model.
      config: of the new run.
      between: sentences about the specs of the trained model and of the new one.
    """
    if other := others(config):
        yield f"init.{key}={start!r} and init.{other[0]} both start the run; use init.{other[0]}=''."
    elif not holds_checkpoint(start):
        yield f"init.{key}={start!r} holds no finished checkpoint; give the --workdir of a trained model."
    else:
        try:
            saved = saved_config(pathlib.Path(start).expanduser())
        except ConfigError as error:
            yield str(error).replace("--workdir=", f"init.{key}=")
            return
        yield from between(*(Spec.from_config(c.model.to_dict(), vocab_size=1) for c in (saved, config)))
