"""The plan says what hand counts say, where every array would lie, and what a compiled step moves."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

import main
from configs import moe, tokenformer, transformer
from experiments import planning
from experiments.planning import chips, compiled, hlo, machines, text
from experiments.program import build, counting, inputs, sharding
from experiments.settings import keys
from experiments.settings.errors import ConfigError, Refused


def numbers(said: str, pattern: str) -> list[str]:
    found = re.search(pattern, " ".join(said.split()))
    assert found, said
    return list(found.groups())


@pytest.fixture(scope="module")
def tiny_plan():
    config = transformer.get_config("tiny")
    config.mesh.data = 8
    return planning.plan(config.lock())


def test_parameters_of_tiny_by_hand(tiny_plan):
    """2 layers of 128: four 128x128 projections, 128x512 up and down, two norms; 259 ids tied; a last norm."""
    layer = 4 * 128 * 128 + 2 * 128 * 512 + 2 * 128
    assert numbers(tiny_plan, r"parameters: ([\d,]+) in all, ([\d,]+) without embeddings") == [
        f"{2 * layer + 128 + 259 * 128:,}",
        f"{2 * layer + 128:,}",
    ]


def test_flops_of_tiny_by_hand(tiny_plan):
    """6 per weight of a matmul; attention 12 * width per key that a causal row of 128 sees on average, 64.5."""
    matmul = 6 * (2 * (4 * 128 * 128 + 2 * 128 * 512) + 259 * 128)
    context = 2 * 12 * 128 * 64.5
    told = numbers(tiny_plan, r"training FLOPs per token: (\S+) \(matmuls (\S+), attention (\S+)\); (\S+)")
    for shown, value in zip(
        told, [matmul + context, matmul, context, (matmul + context) * 2000 * 16 * 128], strict=True
    ):
        assert float(shown) == pytest.approx(value, rel=5e-4)  # four digits are printed


def test_memory_of_the_state_by_hand(tiny_plan):
    """Float32 parameters and two moments of AdamW, whole on each device of a data mesh, and gradients once."""
    state, gradients = numbers(tiny_plan, r"parameters and optimizer ([\d.]+) MiB, gradients ([\d.]+) MiB")
    parameters = 2 * (4 * 128 * 128 + 2 * 128 * 512 + 2 * 128) + 128 + 259 * 128
    assert float(state) == pytest.approx(12 * parameters / 2**20, abs=0.06)
    assert float(gradients) == pytest.approx(4 * parameters / 2**20, abs=0.06)


def rows(text: str) -> dict[str, list[str]]:
    """Path -> [shape, axes, sharding, bytes] of the table."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in cells}


def test_a_sharded_plan_shows_where_each_parameter_lies():
    config = transformer.get_config("tiny")
    config.mesh.data, config.mesh.fsdp = 1, 8
    text = planning.plan(config.lock())
    found = rows(text)
    assert found["embedding"] == ["float32[259, 128]", "vocab,embed", "-,fsdp", f"{259 * 128 * 4 // 8:,}"]
    block = "stack/period/0_attention"
    assert found[f"{block}/channel/up/kernel"][1:] == ["layers,embed,hidden", "-,fsdp,-", f"{2 * 128 * 512 * 4 // 8:,}"]
    assert found[f"{block}/mixer/out/kernel"][1:] == ["layers,heads,embed", "-,-,fsdp", f"{2 * 128 * 128 * 4 // 8:,}"]
    assert "devices: 8 cpu (fsdp=8)" in text and "…" not in text


def test_tensor_shards_cut_heads_hidden_and_vocabulary():
    config = transformer.get_config("tiny")
    config.model.vocab_multiple, config.mesh.tensor, config.mesh.data = 8, 4, 2
    found = rows(planning.plan(config.lock()))
    assert found["embedding"][:3] == ["float32[264, 128]", "vocab,embed", "tensor,-"]
    assert found["stack/period/0_attention/mixer/q/kernel"][2] == "-,-,tensor"
    assert found["stack/period/0_attention/channel/down/kernel"][2] == "-,tensor,-"


def test_every_setting_is_shown_once_and_what_differs_is_marked(tiny_plan):
    told = text.resolved(transformer.get_config("tiny"))
    flat = keys.flatten(transformer.get_config("tiny").to_dict())
    words = re.findall(r"(\*?)(\w+)=", told)
    assert len(words) == len(flat)
    defaults = keys.flatten(keys.base())
    differing = sorted(key.rsplit(".", 1)[-1] for key in flat if flat[key] != defaults[key])
    assert sorted(name for mark, name in words if mark) == differing == sorted(
        ["num_layers", "width", "length", "steps", "learning_rate"]
    )  # fmt: skip
    assert "*width=128" in tiny_plan and max(map(len, told.splitlines())) <= text.WIDTH


def test_a_plan_of_what_cannot_run_is_refused():
    config = transformer.get_config("tiny")
    config.model.width = 129
    with pytest.raises(ConfigError, match="model.width=129"):
        planning.plan(config)


def small(**mesh: int):
    config = tokenformer.get_config("tiny")
    config.mesh.update(mesh)
    return config.lock()


def test_a_compiled_plan_counts_what_fsdp_gathers_and_scatters(tmp_path):
    """Each parameter token is gathered once in the forward pass and its gradient reduce-scattered once: (n-1)/n of the
    bytes of all keys and values each; the table is gathered once for its two uses, and scattered for each."""
    said = planning.plan_for(small(data=1, fsdp=8), "cpu:8", tmp_path)
    record = json.loads((tmp_path / planning.RECORD).read_text())
    asked = record["tried"][0]
    parameters = record["parameters"]
    tokens, table = parameters["non_embedding"] - 2 * 128, 259 * 128  # without the weight and bias of the last norm
    totals = {(kind, axes): sent for kind, axes, _, sent, _ in text.collective_totals(asked)}
    assert totals["reduce-scatter", "fsdp"] == pytest.approx(7 / 8 * 4 * (tokens + 2 * table))
    assert totals["all-gather", "fsdp"] >= 7 / 8 * 4 * (tokens + table)
    assert asked["fits"] and not asked["roofline"] and "compiled for cpu:8: fits" in said
    page = (tmp_path / planning.PAGE).read_text()
    assert "reduce-scatter" in page and "<script src" not in page and "http://" not in page


def test_smaller_steps_of_experts_balance_over_the_step():
    """A part of a batch does not know the load of all of it; what is tried passes the preflight."""
    config = moe.get_config("tiny")
    config.mesh.update({"data": 1, "expert": 4, "fsdp": 2})
    config.data.batch_size = 64
    tried = planning._smaller(config, dict(config.mesh), jax.devices())
    assert [each.get("train.accumulation") for each in tried[:4]] == [None, 2, 4, 8]
    assert all(each["model.moe.balance_scope"] == "accumulated" for each in tried[1:])
    config.model.moe.balance_scope = "sequence"
    assert not any(
        "model.moe.balance_scope" in each for each in planning._smaller(config, dict(config.mesh), jax.devices())
    )


def test_the_bytes_of_shapes():
    """A token, which orders two operations, holds nothing."""
    assert hlo.size("(f32[2,3]{1,0}, bf16[5]{0}, pred[4], s4[8], token[])") == 24 + 10 + 4 + 4
    assert hlo.size("f8e4m3fn[3]") == 3


def test_collectives_in_a_loop_count_as_often_as_it_turns():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def local(x):
        turn = lambda _, x: jax.lax.ppermute(x, "tensor", [(i, (i + 1) % 4) for i in range(4)])  # noqa: E731
        return jax.lax.psum(jax.lax.fori_loop(0, 5, turn, x), "data")

    both = jax.sharding.PartitionSpec(("data", "tensor"))
    fn = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=both, out_specs=jax.sharding.PartitionSpec("tensor")))
    found = hlo.computations(fn.lower(jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text())
    moved, summed = sorted(hlo.collectives(found, dict(mesh.shape)), key=lambda c: -c.times)
    assert (moved.kind, moved.axes, moved.times, moved.sent) == ("collective-permute", ("tensor",), 5, 64.0)
    assert (summed.kind, summed.axes, summed.group, summed.times) == ("all-reduce", ("data",), 2, 1)
    assert summed.sent == 2 * 1 / 2 * 64


@pytest.mark.parametrize(
    ("told", "limit", "turns"),
    [
        (', backend_config={"known_trip_count":{"n":"7"}}', "constant(3)", 7),
        ("", "constant(3)", 3),
        ("", "parameter(1)", 1),
    ],
)
def test_turns_are_read_from_the_condition_where_the_compiler_does_not_say_them(told, limit, turns):
    """As a TPU program has them; a limit that is no constant is not known."""
    text = f"""HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[]{{:T(128)}}, /*index=1*/f32[4]{{0}}) parameter(0)
  ROOT %next = (s32[], f32[4]{{0}}) tuple(%p, %p)
}}

%condition (q: (s32[], f32[4])) -> pred[] {{
  %limit = s32[]{{:T(128)}} {limit}
  %q = (s32[]{{:T(128)}}, f32[4]{{0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %limit), direction=LT, metadata={{op_name="while/cond/lt"}}
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = (s32[], f32[4]{{0}}) parameter(0)
  ROOT %loop = (s32[], f32[4]{{0}}) while(%x), condition=%condition, body=%body{told}
}}
"""
    assert hlo.times(hlo.computations(text))["body"] == turns


def test_groups_of_devices_are_read_in_every_way_that_they_are_written():
    def axes(text):
        instruction = hlo._instruction("x", f"f32[2]{{0}} all-reduce(%y), {text}")
        return hlo._axes(hlo.groups(instruction.rest, 8), {"data": 2, "fsdp": 4, "tensor": 1})

    assert axes("replica_groups={{0,1,2,3},{4,5,6,7}}") == ("fsdp",)
    assert axes("replica_groups=[2,4]<=[8]") == ("fsdp",)
    assert axes("replica_groups=[4,2]<=[2,4]T(1,0)") == ("data",)
    assert axes("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}") == ("fsdp",)
    assert axes("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, channel_id=1") == ("data", "fsdp")
    assert axes("replica_groups={}") == ("data", "fsdp")


def test_what_does_not_fit_is_read_from_the_words_of_the_compiler():
    """Both sentences as a TPU compiler printed them."""
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (21.61G) exceeds "
    )
    found = compiled._too_large(said + "available HBM (15.75G).")
    assert not found.fits and found.needed == 21.61 * 2**30 and found.available == 15.75 * 2**30
    found = compiled._too_large("RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G.")
    assert found.needed == 20.5 * 2**30


def test_the_roofline_by_hand():
    """A chip of 1 TFLOP/s, 1 GB/s and 1 GB/s a link; an all-reduce alone uses both ways of a ring."""
    config = small(data=8, fsdp=1)
    program = build(config, vocab_size=259, mesh=sharding.make_mesh(config))
    alone = hlo.Collective("all-reduce", ("data",), 8, 4e9, 2, False, "x")
    hidden = hlo.Collective("collective-permute", ("data",), 2, 1e9, 3, True, "x")
    found = compiled.Compiled(True, 1.0, 2.0, {}, [], [alone, hidden], traffic=2.5e9)
    r = compiled.roofline(program, found, chips.Chip("made up", 1e12, 1e9, 1e9, 1e9, 4))
    flops = counting.flops_per_token(program)["total"] * 16 * 128 / 8
    assert r["compute_seconds"] == pytest.approx(flops / 1e12) and r["memory_seconds"] == 2.5
    assert r["overlapped_seconds"] == 3.0 and r["exposed_seconds"] == 4.0 and r["step_seconds"] == 7.0
    assert r["tokens_per_second"] == pytest.approx(16 * 128 / 7) and r["days"] == pytest.approx(7 * 2000 / 86400)


def test_what_all_steps_cost_by_hand():
    """7 s a step, 2,000 steps, 8 devices: 31.1 hours of a device; the config's price stands before the list's."""
    config = small(data=8).copy_and_resolve_references()
    program = build(config.lock(), vocab_size=259, mesh=sharding.make_mesh(config))
    found = compiled.Compiled(True, 1.0, 2.0, {}, [], [], traffic=7e9)
    chip = chips.Chip("made up", 1e15, 1e9, 1e9, 1e9, 4, price=3.0)
    r = compiled.roofline(program, found, chip)
    hours = 7 * config.train.steps / 3600 * 8
    assert r["step_seconds"] == 7.0 and r["chip_hours"] == pytest.approx(hours)
    assert r["price"] == pytest.approx(3 * hours)
    with config.unlocked():
        config.plan.price = 0.5
    program = build(config.lock(), vocab_size=259, mesh=sharding.make_mesh(config))
    assert compiled.roofline(program, found, chip)["price"] == pytest.approx(hours / 2)


def test_the_command_pretends_as_many_devices_as_these_topologies_have():
    assert main.SIMULATED == machines.SIMULATED


def test_a_plan_for_gpus_is_of_the_cut_program_and_says_so(tmp_path):
    config = small(data=8)
    said = planning.plan_for(config, "h100:8", tmp_path)
    lines = said.splitlines()
    assert lines[0].startswith("h100:8: fits: ") and " of 74.51 GiB on each device" in lines[0]
    assert " at best, " in lines[1] and "dollars at 6.88 an hour (a list price of 2025" in lines[1]
    assert "compiled for 8 CPU devices" in said and "all-reduce over data" in said
    assert "add --config.model.dtype=bfloat16" in said
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["chip"]["name"] == "H100 SXM" and record["tried"][0]["compile_seconds"] > 0


def test_passes_over_the_text_by_hand(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 6000)
    (tmp_path / "b.txt").write_text("y" * 4000)
    config = transformer.get_config("tiny")
    config.data.update({"source": "text", "path": str(tmp_path), "validation": 0.2})
    config.train.steps = 10
    count, assumed = inputs.passes(config)
    assert count == 10 * 16 * 128 / 8000 and assumed == "by the sizes of its files"
    config.data.tokenizer = "bpe"
    assert inputs.passes(config)[0] == 4 * count
    config.data.tokenizer = "bytes"
    lines = [line for line in planning.plan(config.lock()).splitlines() if line.startswith("passes over")]
    assert lines == ["passes over the training text: 2.6 (by the sizes of its files)"]
    config = config.copy_and_resolve_references()
    config.train.steps = 100
    assert "26 (by the sizes of its files); read more than 4 times" in planning.plan(config.lock())


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5x:2x2", "did you mean v5[ep]"),
        ("v5e:four", "is unknown; use one like v5e:4x4"),
        ("cpu:3", "is not 8 CPU devices; use --topology=cpu:8"),
        ("h100:3", "is not 8 simulated devices; use --topology=h100:8"),
        ("v5e:3x3", "is no shape of this TPU"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(topology, message, tmp_path):
    with pytest.raises(Refused, match=message):
        planning.plan_for(small(data=-1), topology, tmp_path)


def test_the_step_compiles_for_a_tpu_that_is_not_here(tmp_path):
    """What fsdp cuts goes to its neighbour by transfers beside other work, and its gradient comes back so: half of all
    keys, values and the table each (which is gathered once for its two uses), and no sum over fsdp is whole."""
    config = tokenformer.get_config("tiny")
    config.model.num_layers, config.mesh.fsdp = 1, 2
    said = planning.plan_for(config.lock(), "v5e:2x2", tmp_path)
    record = json.loads((tmp_path / planning.RECORD).read_text())
    asked, parameters = record["tried"][0], record["parameters"]
    assert asked["fits"] and asked["mesh"] == {"data": 2, "fsdp": 2} and "TPU v5 lite" in said
    assert {axis for c in asked["collectives"] for axis in c["axes"]} == {"data", "fsdp"}
    assert 0 < asked["roofline"]["step_seconds"] < 1
    assert 0 < asked["needed"] == sum(asked["memory"].values()) <= asked["available"]
    tokens, table = parameters["non_embedding"] - 2 * 128, 259 * 128
    moved = [c for c in asked["collectives"] if c["axes"] == ["fsdp"]]
    sent = sum(c["sent"] * c["times"] for c in moved)
    assert sent == pytest.approx(1 / 2 * 4 * (2 * tokens + 3 * table), rel=1e-3)
    assert sum(c["sent"] * c["times"] for c in moved if c["overlapped"]) > 0.9 * sent
    assert {c["kind"] for c in moved} == {"collective-permute"}


@pytest.mark.parametrize("family,topology", [(tokenformer, "v5e:8x8"), (transformer, "v5p:4x4x4")])
def test_on_many_chips_what_is_cut_goes_beside_other_work(family, topology):
    """Four neighbours of a pod of 64 share what fsdp cuts. Sums are sent in float32, as the parameters are."""
    config = family.get_config("tiny")
    config.model.num_layers, config.data.batch_size, config.data.length = 1, 64, 32
    config.mesh.update({"data": 16, "fsdp": 4})
    devices, chip = machines.devices(topology)
    program = build(config.lock(), vocab_size=259, mesh=sharding.make_mesh(config, devices))
    moved = [c for c in compiled.compile_step(program, chip).collectives if c.axes == ("fsdp",)]
    assert {c.kind for c in moved} == {"collective-permute"}
    sent, beside = (sum(c.sent * c.times for c in moved if c.overlapped or not beside) for beside in (False, True))
    assert beside > 0.98 * sent > 0


def activations(stream: tuple[str, ...]) -> list[tuple[str, float]]:
    """(kind, bytes sent) of every transfer between tensor devices of about an activation's size, on four TPU chips."""
    config = transformer.get_config("tiny")
    config.model.update({"num_layers": 1, "dtype": "bfloat16", "vocab_multiple": 8})
    config.mesh.update({"data": 1, "tensor": 4})
    config.sharding.stream = stream
    devices, chip = machines.devices("v5e:2x2")
    program = build(config.lock(), vocab_size=259, mesh=sharding.make_mesh(config, devices))
    return [(c.kind, c.sent) for c in compiled.compile_step(program, chip).collectives if c.sent > 3e5]


def test_a_cut_stream_is_scattered_and_gathered_instead_of_summed():
    """Per layer and pass two sums become two scatters and two gathers, of the same bytes in all; one more each where
    tokens are embedded and where the loss reads them."""
    one = 3 / 4 * 2 * 16 * 128 * 128  # Bytes of bfloat16 activations that one device sends of a scatter or a gather.
    assert sorted(activations(())) == [("all-reduce", 2 * one)] * 6
    assert sorted(activations(("tensor",))) == [("all-gather", one)] * 5 + [("reduce-scatter", one)] * 5
