"""Scaled arrays and windows of rows: values, and gradients written by hand, against plain float64 forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import lengths
from kernels.lact import schedule

RNG = np.random.default_rng(0)
# A sum of n products has a relative error below n eps, here of at most 24 numbers of size about 1.
BOUND = 24 * 8 * np.finfo(np.float64).eps


def plain(x, length, axes, epsilon):
    return (1 if length is None else length) * x / (np.sqrt(np.sum(x * x, axis=axes, keepdims=True)) + epsilon)


@pytest.mark.parametrize(("axes", "shape"), [((-1,), None), ((-1,), (1, 3, 1)), ((-1,), (2, 3, 1)), ((-2, -1), None)])
def test_scaled_to_a_length_with_gradients(axes, shape):
    x, g, epsilon = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4)), 0.3
    n = None if shape is None else RNG.normal(size=shape)
    with jax.enable_x64(True):
        made, pull = jax.vjp(lambda x, n: lengths.scaled_to(x, n, axes, epsilon), x, n)
        dx, dn = map(np.asarray, pull(g)) if n is not None else (np.asarray(pull(g)[0]), None)
    np.testing.assert_allclose(made, plain(x, n, axes, epsilon), rtol=BOUND, atol=BOUND)
    step = 1e-5  # Central differences: an error of step^2 times a third derivative, here below 100, and of eps / step.
    for given, found in ((x, dx), *(() if n is None else ((n, dn),))):
        for i in np.ndindex(given.shape):
            ends = []
            for side in (step, -step):
                moved = given.copy()
                moved[i] += side
                ends.append((g * plain(*((moved, n) if given is x else (x, moved)), axes, epsilon)).sum())
            assert abs((ends[0] - ends[1]) / (2 * step) - found[i]) < 100 * step**2


def test_a_row_of_zeros_keeps_the_gradient_of_the_quotient_alone():
    g = RNG.normal(size=(2, 4))
    with jax.enable_x64(True):
        dx, dn = jax.vjp(lambda x, n: lengths.scaled_to(x, n, (-1,), 0.5), np.zeros((2, 4)), np.full((2, 1), 3.0))[1](g)
    np.testing.assert_array_equal(dx, 6 * g)
    np.testing.assert_array_equal(dn, 0)


NEVER = schedule.NEVER
CASES = {  # length, size, begins of each row
    "apart, beyond the end, never": (11, 3, [[1, 4, 9], [0, NEVER, NEVER]]),
    "before the row": (4, 3, [[-2], [0]]),
    "longer than the row": (3, 5, [[1], [NEVER]]),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_and_back_are_each_other_s_gradients(case):
    length, size, begin = CASES[case]
    begin = np.array(begin, np.int32)
    x, y = RNG.normal(size=(2, length, 2)), RNG.normal(size=(2, begin.shape[1] * size, 2))
    want, back = np.zeros_like(y), np.zeros_like(x)
    for b, u, o in np.ndindex(*begin.shape, size):
        if 0 <= (place := int(begin[b, u]) + o) < length:
            want[b, u * size + o], back[b, place] = x[b, place], y[b, u * size + o]
    with jax.enable_x64(True):
        cut, pulled = jax.vjp(lambda x: schedule.windows(x, begin, size, length), jnp.asarray(x))
        put, pushed = jax.vjp(lambda y: schedule.unwindowed(y, begin, size, length), jnp.asarray(y))
        gradients = pulled(jnp.asarray(y))[0], pushed(jnp.asarray(x))[0]
    for found, plainly in ((cut, want), (put, back), (gradients[0], back), (gradients[1], want)):
        np.testing.assert_array_equal(found, plainly)
