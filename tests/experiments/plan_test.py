"""The plan says what hand counts say, and where every array would lie."""

import re

import pytest

from configs import transformer
from experiments import plan as planning
from experiments import preflight
from experiments.errors import ConfigError


def numbers(text: str, pattern: str) -> list[str]:
    found = re.search(pattern, " ".join(text.split()))
    assert found, text
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
    told = numbers(
        tiny_plan, r"training FLOPs per token: (\S+) \(matmuls (\S+), attention and other mixing (\S+)\); (\S+)"
    )
    for text, value in zip(
        told, [matmul + context, matmul, context, (matmul + context) * 2000 * 16 * 128], strict=True
    ):
        assert float(text) == pytest.approx(value, rel=5e-4)  # four digits are printed


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
    told = planning.resolved(transformer.get_config("tiny"))
    flat = preflight.flatten(transformer.get_config("tiny").to_dict())
    words = re.findall(r"(\*?)(\w+)=", told)
    assert len(words) == len(flat)
    defaults = preflight.flatten(preflight.base())
    differing = sorted(key.rsplit(".", 1)[-1] for key in flat if flat[key] != defaults[key])
    assert sorted(name for mark, name in words if mark) == differing == sorted(
        ["num_layers", "width", "length", "steps", "learning_rate"]
    )  # fmt: skip
    assert "*width=128" in tiny_plan and max(map(len, told.splitlines())) <= planning.WIDTH


def test_a_plan_of_what_cannot_run_is_refused():
    config = transformer.get_config("tiny")
    config.model.width = 129
    with pytest.raises(ConfigError, match="model.width=129"):
        planning.plan(config)
