"""Foreign files that are damaged, or made to do harm: one sentence each, and nothing read that is not theirs."""

import json
import os
import shutil

import numpy as np
import pytest

from configs import families, pretrained
from experiments.pretrained import gguf_tokenizer, loaded, tensors
from experiments.settings.errors import CheckpointError
from tests.experiments.pretrained import cases, gguf_files
from tests.experiments.pretrained.pretrained_test import FIXTURES, copied
from tests.json_places import changed, places

VALUES = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", "\u202e", [], [[]], ["x"], {}, {"a": 1}, 2**33
)  # fmt: skip


def holds_or_says(read, what):
    """`read` ends well, or in one sentence on one line."""
    try:
        read()
    except families.Unreadable as error:
        assert "\n" not in str(error) and "\u202e" not in str(error), (what, error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} {error}") from error


@pytest.mark.parametrize("name", cases.FIXTURES)
def test_every_field_of_a_config_may_hold_anything(name, tmp_path):
    told, path = json.loads((FIXTURES / name / "config.json").read_text()), tmp_path / "config.json"
    for at in places(told):
        for value in VALUES:
            path.write_text(json.dumps(changed(told, at, value)))
            holds_or_says(lambda: families.describe(tmp_path), (at, value))


def test_a_config_of_other_layers_or_sizes_than_a_model_can_have_is_refused(tmp_path):
    folder = copied(tmp_path, "qwen2-windows")
    told = json.loads((folder / "config.json").read_text())
    for field, value, said in (
        ("layer_types", ["full_attention"] * 2, "has 2 layer_types and 3 layers"),
        ("num_hidden_layers", 10**12, "num_hidden_layers=1000000000000, which no model has"),
        ("num_hidden_layers", 10**6, "no number from 1 to 16384"),
        ("num_attention_heads", 0, "num_attention_heads=0, which is no number from 1"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps=nan, which no model has"),
    ):
        (folder / "config.json").write_text(json.dumps(told | {field: value}))
        with pytest.raises(ValueError, match=said):
            pretrained.get_config(str(folder))


def rewritten(folder, change):
    """The folder's safetensors file with `change(header)` for its header."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def test_every_place_in_a_header_of_safetensors_may_hold_anything(tmp_path):
    folder = copied(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()

    def read():
        source = tensors.open_tensors(folder)
        for name in source.shapes:
            source.read(name)

    size = int.from_bytes(whole[:8], "little")
    told = json.loads(whole[8 : 8 + size])
    few = {name: told[name] for name in list(told)[:3]}
    for at in places(few):
        for value in VALUES:
            rewritten(folder, lambda _, at=at, value=value: changed(told, at, value))
            holds_or_says(read, (at, value))
            (folder / "model.safetensors").write_bytes(whole)
    for odd in (b"[]", b"7 ", b"null", b"[" * 200_000, b'{"a":' * 100_000, b"1" * 50_000, b"\xff\xfe{}"):
        (folder / "model.safetensors").write_bytes(len(odd).to_bytes(8, "little") + odd)
        with pytest.raises(families.Unreadable, match="is damaged"):
            read()


def swap(header):
    """Two tensors of one shape where the first one lies."""
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    return header | {second: header[first]}


def gap(header):
    return {name: entry for name, entry in header.items() if "layers.1.mlp.up_proj" not in name}


@pytest.mark.parametrize(("change", "said"), [(swap, "lie over each other|leave bytes"), (gap, "leave bytes between")])
def test_every_byte_of_safetensors_belongs_to_one_tensor(change, said, tmp_path):
    folder = copied(tmp_path)
    rewritten(folder, change)
    with pytest.raises(families.Unreadable, match=said):
        tensors.open_tensors(folder)


def index(folder, by_name):
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": by_name}))


def test_an_index_names_files_of_its_folder_and_counts(tmp_path):
    folder = copied(tmp_path)
    names = list(tensors.open_tensors(folder).shapes)
    shutil.copyfile(folder / "model.safetensors", tmp_path / "x.safetensors")
    shutil.copyfile(folder / "model.safetensors", folder / "x.safetensors")
    for outside in ("../x.safetensors", str(tmp_path / "x.safetensors"), "sub/../x.safetensors"):
        index(folder, dict.fromkeys(names, outside))
        with pytest.raises(families.Unreadable, match="which is no file of its folder"):
            tensors.open_tensors(folder)
    for damaged in ("[" * 100_000, "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        (folder / tensors.INDEX).write_text(damaged)
        with pytest.raises(families.Unreadable, match="is damaged"):
            tensors.open_tensors(folder)
    # A tensor lies in two files: the one that the index names is read.
    data = bytearray((folder / "model.safetensors").read_bytes())
    size = int.from_bytes(data[:8], "little")
    data[8 + size :] = np.full((len(data) - 8 - size) // 4, 3.0, np.float32).tobytes()
    (folder / "a.safetensors").write_bytes(data)
    index(folder, dict.fromkeys(names, "model.safetensors") | {names[0]: "a.safetensors"})
    source = tensors.open_tensors(folder)
    assert np.all(source.read(names[0]) == 3) and not np.any(source.read(names[1]) == 3)
    index(folder, dict.fromkeys(names, "model.safetensors") | {names[1]: "a.safetensors"})
    source = tensors.open_tensors(folder)
    assert np.all(source.read(names[1]) == 3) and not np.any(source.read(names[0]) == 3)
    # Without an index it is model.safetensors alone, or files that do not contradict each other.
    (folder / tensors.INDEX).unlink()
    assert not np.any(tensors.open_tensors(folder).read(names[0]) == 3)
    (folder / "model.safetensors").unlink()
    with pytest.raises(families.Unreadable, match="in two files; leave one model in the folder"):
        tensors.open_tensors(folder)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = copied(tmp_path)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(families.Unreadable, match=r"holds no \*.safetensors"):
        tensors.open_tensors(folder)


def test_every_field_of_gguf_may_hold_anything(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_files.write())
    assert families.describe(path)[1]["attention.rope_scaling.kind"] == "longrope"
    tokenizer = gguf_tokenizer.load(path)
    assert tokenizer.decode(tokenizer.encode("ab \u00e9")) == "ab \u00e9"
    values = (True, 0, -1, 1.5, float("nan"), float("inf"), "", "\u202e", [], [0], ["x"], [1.5], 2**40)
    for field in gguf_files.FIELDS:
        rest = {name: of for name, of in gguf_files.FIELDS.items() if name != field}
        for fields in (rest, *({**rest, field: value} for value in values)):
            path.write_bytes(gguf_files.write(fields))
            for read in (families.describe, tensors.open_tensors, gguf_tokenizer.load):
                holds_or_says(lambda read=read: read(path), (read.__module__, field, fields.get(field)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"types": {"rope_freqs.weight": 1}}, "'rope_freqs.weight' is no short row of F32"),
        ({"offsets": {"blk.0.attn_q.weight": 0}}, "lies over another one"),
        ({"names": {"blk.0.attn_q.weight": "blk.0.attn_k.weight"}}, "two tensors of one name"),
        ({"offsets": {"blk.0.attn_q.weight": 2**40}}, "is cut off"),
        ({"types": {"blk.0.attn_q.weight": 99}}, "has the type 99, which is not handled"),
    ],
)
def test_a_table_of_gguf_that_cannot_be_is_refused(how, said, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_files.write(**how))
    with pytest.raises(families.Unreadable, match=said):
        families.describe(path)


def test_gguf_that_is_cut_off_anywhere_is_told(tmp_path):
    path, whole = tmp_path / "model.gguf", gguf_files.write()
    for size in (0, 3, 10, 24, 60, 500, 3000, len(whole) // 2, len(whole) - 33):
        path.write_bytes(whole[:size])
        with pytest.raises(families.Unreadable):
            tensors.open_tensors(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_when_they_are_read(bad, tmp_path, monkeypatch):
    folder = copied(tmp_path)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(bad).tobytes()
    path.write_bytes(data)
    config = pretrained.get_config(str(folder))
    config.data.tokenizer, config.model.dtype = "bytes", "float32"
    monkeypatch.setattr(loaded.inputs, "tokenizer", lambda _: Small())
    with pytest.raises(CheckpointError, match=r"init.pretrained=.*holds numbers that are not finite"):
        loaded.load(config)


class Small:
    """As many ids as the fixtures have."""

    vocab_size, bos, eos, pad, name, hash = 29, 1, 2, 0, "small", ""
