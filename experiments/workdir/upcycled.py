"""A run that starts from a trained dense model as a mixture of experts: `init.upcycle_from`; for notebooks, too."""

import os
from typing import Any

import jax

from experiments.program import Program
from experiments.workdir import grown, trained
from models.experts import dense_start


def upcycle(workdir: str | os.PathLike, **moe: Any) -> Any:
    """The trained dense model in `workdir` as a mixture of experts with the same function, to use or to train on.

    Args:
      workdir: a run with `model.channel` "mlp" or "swiglu".
      **moe: options of `model.moe`, e.g. `experts=8, k=2, hidden=128, scale=4.0`; gating and activation follow the run.
    """
    old = trained.load(workdir)
    config = old.config.copy_and_resolve_references().unlock()
    channel = config.model.channel
    follow = {"gated": dense_start.DENSE.get(channel, True)}
    if channel in dense_start.DENSE:
        follow["activation"] = config.model[channel].activation
    config.model.channel = "moe"
    config.model.moe.update(follow | moe)
    return grown.remade(old, config, _upcycle)


def state(program: Program, workdir: str | os.PathLike, *, vocab_size: int) -> Any:
    """The state at step 0 of `program` from the (averaged) parameters of the newest good checkpoint in `workdir`."""
    return grown.changed(program, workdir, _upcycle, vocab_size=vocab_size)


def _upcycle(old: Program, new: Program) -> Any:
    """`params -> upcycled params`, laid out as the new program says."""
    key = jax.random.key(new.config.seed)
    fn = lambda params: dense_start.upcycled(params, old.spec, new.spec, key)  # noqa: E731
    return jax.jit(fn, out_shardings=new.shardings["params"])
