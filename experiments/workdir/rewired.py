"""A run whose later layers read an early one, from a trained Transformer: `init.rewire_from`; for notebooks, too."""

import os
from typing import Any

import jax

from experiments.program import Program
from experiments.workdir import grown, trained
from models import rewiring

TEACHER = "teacher"  # in place of a workdir: that of companions.teacher


def start(config: Any) -> str:
    """The workdir that `init.rewire_from` names, "" where there is none."""
    named = config.init.rewire_from
    return config.companions.teacher.workdir if named == TEACHER else named


def rewire(workdir: str | os.PathLike, *, layer: int = 0, share: int = 1) -> Any:
    """The trained Transformer in `workdir` with `model.kind="swiftkv"`, ready to use or to distil.

    Args:
      workdir: a run with `model.kind="lm"` and `model.mixer="attention"`.
      layer: l; those behind it read keys and values of what leaves it. 0: half of the layers.
      share: g: so many of them read one pair.
    """
    old = trained.load(workdir)
    config = old.config.copy_and_resolve_references().unlock()
    config.model.kind = "swiftkv"
    config.model.swiftkv.update({"layer": layer, "share": share})
    return grown.remade(old, config, _rewire)


def state(program: Program, workdir: str | os.PathLike, *, vocab_size: int) -> Any:
    """The state at step 0 of `program` from the (averaged) parameters of the newest good checkpoint in `workdir`."""
    return grown.changed(program, workdir, _rewire, vocab_size=vocab_size)


def _rewire(old: Program, new: Program) -> Any:
    """`params -> rewired params`, laid out as the new program says."""
    fn = lambda params: rewiring.rewired(params, old.spec, new.spec)  # noqa: E731
    return jax.jit(fn, out_shardings=new.shardings["params"])
