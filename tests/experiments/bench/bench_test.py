"""The bench of mixers at a size of seconds: what is timed is checked first, and rates are of each one's own work."""

import dataclasses
import json

import jax
import pytest

from experiments import bench
from experiments.bench import mixers, ops


def small(mixer, T, **options):
    return mixers.Layer(mixer, 16, 2, 1, T, "float32", tuple(options.items()))


def test_a_row_of_mixers_is_checked_timed_and_drawn(tmp_path, monkeypatch):
    made = lambda platform, T: {"attention": small("attention", 16), "linear": small("linear_attention", T // 64)}  # noqa: E731
    monkeypatch.setattr(mixers, "_mixers", made)
    monkeypatch.setattr(mixers, "CHECKED", 32)
    monkeypatch.setattr(bench.counting, "matmul_rate", lambda *_, **__: 1e9)
    monkeypatch.setattr(bench, "copy_rate", lambda: 1e9)
    found = bench.run(filter="mixers/T=4096", workdir=str(tmp_path))
    assert [r["candidate"] for r in found] == ["attention", "linear"] and (tmp_path / "mixers.png").exists()
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == found
    for record, T, layer in zip(found, (16, 64), made("cpu", 4096).values(), strict=True):
        assert record["work_per_second"] * record["wall_ms"] == pytest.approx(T * 1e3)
        assert record["share_of_ceiling"] * record["wall_ms"] == pytest.approx(layer.flops() / 1e9 * 1e3)


def test_a_wrong_mixer_is_not_timed(monkeypatch):
    layer = small("linear_attention", 16)
    assert mixers.wrong("a", dataclasses.replace(layer, T=24)) == ""
    right = ops.call
    monkeypatch.setattr(ops, "call", lambda forward, backward: lambda *args: jax.tree.map(
        lambda x: x * 1.01 if args[0][1].dtype == "bfloat16" else x, right(forward, backward)(*args)
    ))  # fmt: skip
    told = mixers.wrong("a", dataclasses.replace(layer, T=25, dtype="bfloat16"))
    assert told == "", "one per cent is within the rounding of bfloat16"
    monkeypatch.setattr(ops, "call", lambda forward, backward: lambda *args: jax.tree.map(
        lambda x: x * 1.2 if args[0][1].dtype == "bfloat16" else x, right(forward, backward)(*args)
    ))  # fmt: skip
    assert "a is off by 2.0e-01" in mixers.wrong("a", dataclasses.replace(layer, T=26, dtype="bfloat16"))


def test_fast_weights_alone_count_what_the_compiler_counts():
    """18 F d a token and head forward, 6 in the last chunk, and one step of Newton-Schulz: loops turn once."""
    options = (("chunk_size", 32), ("window", 32), ("newton_schulz_steps", 1))
    layer = mixers.FastWeights("lact", 256, 4, 1, 40, "float32", options)
    inputs, _ = jax.eval_shape(layer.args)
    counted = jax.jit(layer.forward()).lower(*inputs).cost_analysis()["flops"]
    assert 1 <= counted / (layer.flops() / 3) < 1.1


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_rows_count_what_their_layers_do(platform):
    """At equal tokens Newton-Schulz of 384 x 384 costs 2048 / 16 times as much in small chunks, all else the same."""
    names = [row.name for row in bench.planned(platform)]
    assert len(set(names)) == len(names) and sum("mixers/lact" in name for name in names) == 3
    with_steps, without = ({k: v.flops() / v.T for k, v in mixers._chunks(platform, n).items()} for n in (5, 0))
    extra = {key: with_steps[key] - without[key] for key in without}
    updates = {key: -(-v.T // dict(v.options)["chunk_size"]) - 1 for key, v in mixers._chunks(platform, 5).items()}
    T = {key: v.T for key, v in mixers._chunks(platform, 5).items()}
    per_update = {key: extra[key] * T[key] / updates[key] for key in extra}
    assert per_update["chunk 16"] == pytest.approx(per_update["chunk 2048"])
