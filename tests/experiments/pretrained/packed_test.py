"""Blocks of four-bit floats: their numbers by hand and by transformers, and what does not belong together."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import families
from experiments.pretrained import packed, tensors
from tests.experiments.pretrained.pretrained_test import FIXTURES, read

RNG = np.random.default_rng(11)
E, OUT, GROUPS = 2, 6, 3
BLOCKS = RNG.integers(0, 256, (E, OUT, GROUPS, 16)).astype(np.uint8)
SCALES = RNG.integers(100, 140, (E, OUT, GROUPS)).astype(np.uint8)
LIVE = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")


def number(bits: int) -> float:
    """E2M1: a sign, two bits of the exponent with bias 1, one of the fraction; exponent 0 is subnormal."""
    sign, exponent, fraction = (-1) ** (bits >> 3), (bits >> 1) & 3, bits & 1
    return sign * (fraction / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2))


def test_numbers_are_those_of_their_bits():
    got = packed.mxfp4(BLOCKS, SCALES)
    assert got.shape == (E, OUT, 32 * GROUPS) and got.dtype == np.float32
    for e, o, g, b in np.ndindex(BLOCKS.shape):
        byte, scale = int(BLOCKS[e, o, g, b]), 2.0 ** (int(SCALES[e, o, g]) - 127)
        assert got[e, o, 32 * g + 2 * b] == number(byte & 15) * scale
        assert got[e, o, 32 * g + 2 * b + 1] == number(byte >> 4) * scale


@pytest.mark.skipif(not LIVE, reason="torch and transformers are not installed")
def test_numbers_are_those_of_transformers():
    import torch
    from transformers.integrations import mxfp4

    want = mxfp4.convert_moe_packed_tensors(torch.from_numpy(BLOCKS), torch.from_numpy(SCALES), dtype=torch.float32)
    np.testing.assert_array_equal(packed.mxfp4(BLOCKS, SCALES).swapaxes(-1, -2), want.numpy())


def folder_of(tmp_path, name, given):
    shutil.copy(FIXTURES / name / "config.json", tmp_path)
    save_file(given, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_a_model_in_blocks_is_the_model_of_their_numbers(tmp_path):
    """The maps of gpt-oss's experts in both forms give the same parameters."""
    plain, told = tmp_path / "plain", json.loads((FIXTURES / "gpt-oss" / "config.json").read_text())
    D, F, X = 64, 32, told["num_local_experts"]
    source = tensors.open_tensors(FIXTURES / "gpt-oss")
    given = {name: RNG.normal(size=_wide(shape, D, F)).astype(np.float32) for name, shape in source.shapes.items()}
    blocks = dict(given)
    for name in [name for name in given if name.endswith(("gate_up_proj", "down_proj"))]:
        outs, ins = (2 * F, D) if name.endswith("gate_up_proj") else (D, F)
        parts = (
            RNG.integers(0, 256, (X, outs, ins // 32, 16)).astype(np.uint8),
            np.full((X, outs, ins // 32), 125, "u1"),
        )
        given[name] = np.ascontiguousarray(packed.mxfp4(*parts).swapaxes(-1, -2))
        blocks |= {f"{name}{end}": part for end, part in zip(packed.ENDS, parts, strict=True)}
        del blocks[name]
    sizes = {"hidden_size": D, "intermediate_size": F}
    for folder, tensors_, more in (
        (plain, given, {}), (tmp_path / "blocks", blocks, {"quantization_config": {"quant_method": "mxfp4"}})
    ):  # fmt: skip
        folder.mkdir()
        save_file(tensors_, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(told | sizes | more))
    one, other = (read(folder)[1] for folder in (plain, tmp_path / "blocks"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _wide(shape, D, F):
    """Shapes of the fixture, of width 16 and hidden width 8, at sizes with D = 2 F, too."""
    return tuple({16: D, 8: F}.get(n, n) for n in shape)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a_blocks": BLOCKS}, r"blocks \(2, 6, 3, 16\) and scales \(\) of 'a' do not belong together"),
        ({"a_blocks": BLOCKS, "a_scales": SCALES[:1]}, "do not belong together"),
        ({"a_blocks": BLOCKS, "a_scales": SCALES, "a": np.zeros(2, np.float32)}, "do not belong together"),
        ({"a": BLOCKS}, "tensor 'a' has the type 'U8', which is not handled"),
    ],
)
def test_what_is_no_packed_tensor_is_refused(given, said, tmp_path):
    with pytest.raises(families.Unreadable, match=said):
        tensors.open_tensors(folder_of(tmp_path, "gpt-oss", given))
