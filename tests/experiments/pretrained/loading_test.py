"""Loading needs little memory beside the model's own bytes, and copies are what they should be."""

import sys

import ml_dtypes
import numpy as np
import pytest

from experiments.pretrained import copying
from tests.experiments.pretrained import loading_cost

TYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.mark.parametrize("there", TYPES)
@pytest.mark.parametrize("here", TYPES)
def test_a_copy_is_what_numpy_gives(there, here):
    x = np.random.default_rng(0).normal(size=(300, 130)).astype(there)
    for given in (x, x.T, x[:, 3:90].T, x[5]):
        out = copying.empty(given.shape, here)
        assert out.ctypes.data % copying.ALIGN == 0
        copying.copy(out, given)
        np.testing.assert_array_equal(out, given.astype(here))


def test_work_on_all_cores_is_all_done():
    done = np.zeros(7, int)
    copying.on_all_cores(lambda row: done.__setitem__(row, row + 1), 7)
    assert done.tolist() == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ZeroDivisionError):
        copying.on_all_cores(lambda row: 1 / (row - 3), 7)


@pytest.mark.skipif(sys.platform != "linux", reason="the measure is Linux's")
def test_a_folder_needs_a_fifth_more_than_its_bytes(tmp_path):
    size = loading_cost.make(tmp_path, 200)
    assert loading_cost.run(tmp_path, "here")["bytes"] < 1.2 * size + (24 << 20)  # What a first program takes.
