"""Laws of models that grow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from kernels.pattention import pattention
from models import growth

P, MORE, D = 24, (1, 40), 16


def parameter_tokens() -> Law:
    """A map of parameter tokens that grows by zero keys and any values computes what it did.

    In float64, for both normalisations of the scores that allow growth, both forms of GeLU, and two sizes. Error: over
    the largest output. Tolerance: a result is a sum of at most 64 products of scores, which are sums of 16 products
    over a norm of 64 squares: fewer than 200 roundings of 2^-53, each of which GeLU at most doubles.

    Source: Wang et al. 2024, arXiv:2410.23168, section 3.3
    """
    far, cases = 0.0, 0
    with jax.enable_x64(True):
        for rule, gelu, more in itertools.product(("l2_gelu", "gelu_l2"), ("exact", "tanh"), MORE):
            rng = np.random.default_rng(more)
            x, keys, values = (jnp.asarray(rng.normal(size=shape)) for shape in ((8, D), (P, D), (P, D)))
            new = jnp.asarray(rng.normal(size=(P + more, D)))
            options = {"normalization": rule, "gelu": gelu, "tau": P**0.5, "implementation": "reference"}
            before = np.asarray(pattention(x, keys, values, **options))
            grown = [growth.extend(keys, jnp.zeros_like(new)), growth.extend(values, new)]
            after = np.asarray(pattention(x, *grown, **options))
            far = max(far, float(np.abs(after - before).max() / np.abs(before).max()))
            cases += 1
    return Law(far, 2 * 200 * 2.0**-53, cases)
