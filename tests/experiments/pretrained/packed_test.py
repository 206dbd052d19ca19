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
from tests.experiments.pretrained import gguf_files
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


def rows_of_gguf(codes, scales):
    """Bytes of `codes` `[..., G, 32]` as .gguf files have them: a scale, then number j beside number j + 16."""
    halves = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate([scales[..., None], halves], -1).astype(np.uint8).reshape(*codes.shape[:-2], -1)


def test_numbers_of_gguf_are_those_of_their_bits():
    codes = RNG.integers(0, 16, (E, OUT, GROUPS, 32)).astype(np.uint8)
    raw = rows_of_gguf(codes, SCALES)
    got = packed.mxfp4_rows(raw)
    assert raw.shape == (E, OUT, 17 * GROUPS) and got.shape == (E, OUT, 32 * GROUPS) and got.dtype == np.float32
    for e, o, g, j in np.ndindex(codes.shape):
        assert got[e, o, 32 * g + j] == number(int(codes[e, o, g, j])) * 2.0 ** (int(SCALES[e, o, g]) - 127)


@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="gguf is not installed")
def test_numbers_of_gguf_are_those_of_its_package():
    import gguf

    raw = rows_of_gguf(RNG.integers(0, 16, (E, OUT, GROUPS, 32)).astype(np.uint8), SCALES)
    if not hasattr(gguf.GGMLQuantizationType, "MXFP4"):
        pytest.skip("this gguf is older than the type")
    want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(packed.mxfp4_rows(raw), want)


def test_a_gguf_file_in_blocks_is_the_model_of_their_numbers(tmp_path):
    """gpt-oss with its experts' maps in blocks, beside a file that has their numbers in float32."""
    D, F, X = 32, 32, 2
    fields, shapes = gguf_files.FIELDS | OSS, _of_oss(D, F, X)
    maps = [name for name in shapes if name.endswith("_exps.weight")]
    given = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    blocks = {}
    for name in maps:
        codes = RNG.integers(0, 16, (*shapes[name][:-1], shapes[name][-1] // 32, 32)).astype(np.uint8)
        blocks[name] = rows_of_gguf(codes, np.full(codes.shape[:-1], 125, np.uint8))
        given[name] = packed.mxfp4_rows(blocks[name])
    found = []
    for k, types in enumerate(({}, dict.fromkeys(maps, 39))):
        data = {name: blocks[name] if name in types else given[name] for name in given}
        (tmp_path / f"{k}.gguf").write_bytes(gguf_files.write(fields, shapes, types=types, data=data))
        found.append(read(tmp_path / f"{k}.gguf")[1])
    jax.tree.map(np.testing.assert_array_equal, *found)
    layer = found[1]["stack"]["period"]["0_attention"]
    for part in ("gate", "up", "down"):
        want = given[f"blk.0.ffn_{part}_exps.weight"].swapaxes(1, 2)
        np.testing.assert_array_equal(layer["channel"]["experts"][part][0], want)
        np.testing.assert_array_equal(
            layer["channel"]["experts"][f"{part}_bias"][0], given[f"blk.0.ffn_{part}_exps.bias"]
        )
    np.testing.assert_array_equal(layer["channel"]["router"][0], given["blk.0.ffn_gate_inp.weight"].T)
    np.testing.assert_array_equal(layer["mixer"]["sink_scores"][0], given["blk.0.attn_sinks.weight"])


OSS = {
    "general.architecture": "gpt-oss", "gpt-oss.embedding_length": 32, "gpt-oss.attention.head_count": 4,
    "gpt-oss.attention.head_count_kv": 4, "gpt-oss.block_count": 1, "gpt-oss.feed_forward_length": 32,
    "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5, "gpt-oss.expert_count": 2, "gpt-oss.expert_used_count": 1,
    "gpt-oss.expert_feed_forward_length": 32, "gpt-oss.attention.sliding_window": 4, "gpt-oss.context_length": 64,
}  # fmt: skip


def _of_oss(D, F, X):
    """Names and shapes of the tensors of one layer, all of them [out, in] behind the experts."""
    block, V = "blk.0.", len(gguf_files.TOKENS)
    found = {"token_embd.weight": (V, D), "output_norm.weight": (D,), f"{block}attn_norm.weight": (D,)}
    found |= {f"{block}post_attention_norm.weight": (D,), f"{block}attn_sinks.weight": (4,)}
    for part in ("q", "k", "v", "output"):
        found |= {f"{block}attn_{part}.weight": (D, D), f"{block}attn_{part}.bias": (D,)}
    found |= {f"{block}ffn_gate_inp.weight": (X, D), f"{block}ffn_gate_inp.bias": (X,)}
    for part, size in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        found |= {f"{block}ffn_{part}_exps.weight": (X, *size), f"{block}ffn_{part}_exps.bias": (X, size[0])}
    return found


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
