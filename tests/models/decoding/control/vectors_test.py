"""Vectors of a file: whatever it holds, numbers of the right shape or a sentence."""

import jax
import numpy as np
import pytest

from models.decoding.control.states import Vectors

SIZES = {"u": jax.ShapeDtypeStruct((1, 2, 3), "float32")}


def given(path):
    return Vectors().given({"vectors": {"path": str(path)}}, None, SIZES)


def test_vectors_are_those_of_the_file(tmp_path):
    u = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "u.npy", u)
    np.testing.assert_array_equal(given(tmp_path / "u.npy")["u"], u)
    assert given("") == {}


WRONG = {
    "another shape": (np.zeros((2, 4)), r"holds \(2, 4\)"),
    "a number": (np.float32(1), r"holds \(\)"),
    "NaN": (np.full((2, 3), np.nan), "holds what is no finite number"),
    "infinite": (np.full((2, 3), np.inf, np.float16), "holds what is no finite number"),
    "texts": (np.full((2, 3), "a"), "holds what is no finite number"),
    "complex": (np.full((2, 3), 1j), "holds what is no finite number"),
    "objects": (np.full((2, 3), None), "is no file of numpy.save"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_array_of_something_else_is_a_sentence(name, tmp_path):
    array, told = WRONG[name]
    np.save(tmp_path / "u.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=f"generate.vectors.path=.*u.npy' {told}.*[^.]\\.$"):
        given(tmp_path / "u.npy")


@pytest.mark.parametrize("data", [b"", b"text", b"\x93NUMPY", b"PK\x03\x04", None])
def test_a_file_of_something_else_is_a_sentence(data, tmp_path):
    if data is not None:
        (tmp_path / "u.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"generate.vectors.path=.* is no file of numpy.save: .*[^.]\.$"):
        given(tmp_path / "u.npy")


def test_many_arrays_are_none(tmp_path):
    np.savez(tmp_path / "u.npz", u=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="u.npz' is no file of numpy.save: "):
        given(tmp_path / "u.npz")
