"""Modules of the house with drawn parameters, in float64, and the same parameters by name for the plain forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import base
from models.spec import Spec


def spec(vocab_size=7, **changes):
    """A float64 Spec of 2 layers of width 12 with 2 heads, and `changes` by name (groups as dicts)."""
    config = base.get_config().model
    config.update({"width": 12, "num_heads": 2, "num_layers": 2, "dtype": "float64", "param_dtype": "float64"})
    config.update({"unroll": 1, **changes})
    return Spec.from_config(config.to_dict(), vocab_size=vocab_size)


def drawn(make, seed=0):
    """(run, parameters by name as numpy) of the module that `make(rngs)` builds.

    Every parameter is drawn, by its role, so that none is at a value (0 or 1) that hides what is done with it.
    `run(function, *arrays)` is `function(module, *arrays)` compiled, as numpy; `run.gradient(function, *arrays)` is the
    gradient of a number by the parameters, named as they are.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, state = nnx.split(module, nnx.Param)
    rng = np.random.default_rng(seed)

    def fill(variable):
        shape = variable.shape
        wide = math.sqrt(max(1, shape[-2] if len(shape) > 1 else 1))
        values = {
            "kernel": rng.normal(size=shape) / wide,
            "embedding": rng.normal(size=shape) / 2,
            "norm": 1 + 0.3 * rng.normal(size=shape),
            "bias": 0.4 * rng.normal(size=shape),
            "fast": rng.normal(size=shape) / wide,
            "frozen": 1.7 + np.zeros(shape),
            "running": 0.2 * rng.normal(size=shape),
        }
        return variable.replace(jnp.asarray(values[variable.get_metadata("role")], jnp.float64))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    state = jax.tree.map(fill, state, is_leaf=is_variable)

    @functools.cache
    def compiled(function):
        return jax.jit(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))

    def run(function, *arrays):
        return jax.tree.map(np.asarray, compiled(function)(state, *map(jnp.asarray, arrays)))

    run.gradient = lambda function, *arrays: named(
        jax.jit(jax.grad(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays)))(state, *arrays)
    )
    return run, named(state)


def named(state):
    """An nnx.State as a dict of numpy arrays by name."""
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))
