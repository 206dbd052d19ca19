"""FLOPs of a step under every objective: kernels by hand, and attention by counting the entries of the mask."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.planning import text
from experiments.program import counting
from kernels import masks
from models.objectives.any_subset import row_mask
from tests.plain import tiny

pytestmark = pytest.mark.usefixtures("x64")
D, F, L, T = tiny.N * tiny.H, 12, 3, tiny.T
KERNELS = L * (4 * D * D + 2 * D * F)
rank = jnp.arange(T)[None]
# By objective: (copies of a token, ids beyond the tokenizer's, what all copies of a row see in all passes, options).
FULL, CAUSAL = masks.Full().dense(T, T), masks.Causal().dense(T, T)
CASES = {
    "next_token": (1, 0, [CAUSAL], {}),
    "masked_diffusion": (1, 1, [FULL], {}),
    "block_diffusion": (2, 1, [masks.BlockDiffusion(T, 3).dense(2 * T, 2 * T)], {"block_diffusion": {"block": 3}}),
    "score_entropy": (1, 1, [FULL], {}),
    "any_subset": (2, 1, [row_mask(rank, jnp.array([0]), rank).dense(2 * T, 2 * T)], {}),
    "insertion": (1, 2, [FULL], {}),
    "neodiff": (2, 8, [FULL, FULL], {"neodiff": {"levels": 7}}),
}


def made(objective, **groups):
    return tiny.program(tiny.config(objective, model__num_layers=L, **groups))


@pytest.mark.parametrize("objective", CASES)
def test_flops_by_hand(objective):
    copies, more, seen, options = CASES[objective]
    flops = counting.flops_per_token(made(objective, **options))
    entries = sum(int(np.asarray(mask).sum()) for mask in seen)
    # A multiply-add is 2, backward twice forward: 6 a weight and copy; the head reads one copy.
    assert flops["matmul"] == 6 * (copies * KERNELS + (tiny.V + more) * D)
    # Scores and their product with v: 2 H each an entry and head, forward, times 3.
    assert flops["attention"] == pytest.approx(3 * L * tiny.N * 4 * tiny.H * entries / T, rel=1e-12)
    assert flops["context"] == flops["attention"] and flops["recurrent"] == flops["fast"] == 0
    assert flops["total"] == flops["matmul"] + flops["context"]


@pytest.mark.parametrize(
    ("mixer", "kinds"),
    [
        ("attention", {"attention"}),
        ("lact", {"attention", "fast"}),
        ("ttt_linear", {"fast"}),
        ("ttt_mlp", {"fast"}),
        ("linear_attention", {"recurrent"}),
        ("gated_delta", {"recurrent"}),
    ],
)
def test_what_a_mixer_does_is_of_its_kind(mixer, kinds):
    flops = counting.flops_per_token(made("next_token", model__mixer=mixer, model__lact__heads=2))
    assert {kind for kind in counting.MIXING if flops[kind]} == kinds


def test_what_a_window_hides_is_not_counted():
    flops = counting.flops_per_token(made("next_token", model__attention__window=4))
    entries = int(np.asarray((masks.Causal() & masks.Window(3, 3)).dense(T, T)).sum())
    assert flops["attention"] == pytest.approx(3 * L * tiny.N * 4 * tiny.H * entries / T, rel=1e-12)


def test_the_maps_of_time_and_of_an_earlier_prediction_count_as_kernels():
    flops = counting.flops_per_token(made("neodiff", model__time_features=4, model__self_condition=True))
    assert flops["matmul"] == 6 * (2 * (KERNELS + 4 * D + D * D) + (tiny.V + 100) * D)


def test_heads_count_as_kernels_and_read_the_unembedding_again():
    flops = counting.flops_per_token(made("multi_token", multi_token__tokens=3))
    assert flops["matmul"] == 6 * (KERNELS + 2 * D * D + 3 * tiny.V * D)


def test_a_companion_passes_forward_only():
    student, teacher = made("distillation"), tiny.program(tiny.config(model__num_layers=L + 2))
    alone, other = counting.flops_per_token(student), counting.flops_per_token(teacher)
    both = counting.flops_per_token(dataclasses.replace(student, companions={"teacher": teacher}))
    assert alone == counting.flops_per_token(made("next_token"))
    for kind, flops in both.items():
        assert flops == pytest.approx(alone[kind] + other[kind] / 3, rel=1e-12)


def test_parameters_by_hand():
    counts = counting.parameters(made("next_token", model__tied=False, model__norm="layernorm", model__norm_bias=True))
    assert counts["embedding"] == 2 * tiny.V * D
    assert counts["non_embedding"] == KERNELS + (2 * L + 1) * 2 * D
    assert counts["total"] == counts["embedding"] + counts["non_embedding"]


def test_tokens_of_pattention_count_and_its_temperature_does_not():
    P = 10
    groups = {"model__projection": "pattention", "model__pattention__tokens": P, "model__channel": "pattention"}
    program = made("next_token", **groups)
    weights = L * (4 * P * 2 * D + 4 * P * 2 * D)
    assert counting.parameters(program)["non_embedding"] == weights + (2 * L + 1) * D
    assert counting.flops_per_token(program)["matmul"] == 6 * (weights + tiny.V * D)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_memory_by_hand(remat):
    """Adam in float64: three copies of the parameters; inputs of matmuls and norms of 2 x 24 tokens in 8 bytes each."""
    program = made("block_diffusion", model__remat=remat, optimizer__name="adamw", data__batch_size=8, **TWICE)
    memory, total = counting.memory(program), counting.parameters(program)["total"]
    tokens = 2 * 4 * T  # Two copies of a token; half of the rows at once.
    layer = tokens * (2 * F + 8 * D + 2 * tiny.N * tiny.H) * 8
    kept = L * layer if remat == "none" else layer + L * tokens * D * 8
    assert memory["gradients"] == 8 * total and memory["logits"] == 2 * 4 * tokens * (tiny.V + 1)
    assert memory["activations"] == kept and 0 <= memory["state"] - 24 * total < 64
    assert memory["total"] == memory["state"] + memory["gradients"] + memory["activations"] + memory["logits"]
    assert memory["companions"] == 0


@pytest.mark.parametrize(("dtype", "wide", "copies"), [("float64", 8, 2), ("bfloat16", 4, 3)])
def test_what_is_held_has_no_gradient_and_no_moments(dtype, wide, copies):
    """LoRA beside the maps of attention and of the channel: `copies` numbers of `wide` bytes less for all else."""
    options = {"model__projection": "lora", "model__lora__rank": 3, "optimizer__name": "adamw"}
    options |= {"model__param_dtype": dtype}
    held = made("next_token", optimizer__freeze=("*", "!adapter"), **options)
    free = made("next_token", **options)
    adapters = L * 3 * (4 * (D + D) + 2 * (D + F))
    rest = counting.parameters(free)["total"] - adapters
    assert counting.parameters(held)["total"] == adapters
    some, every = counting.memory(held), counting.memory(free)
    assert counting.held(held) == rest and counting.held(free) == 0
    assert some["gradients"] == wide * adapters and every["gradients"] == wide * (rest + adapters)
    assert every["state"] - some["state"] == copies * wide * rest
    assert every["total"] - some["total"] == (copies + 1) * wide * rest
    assert f"parameters: {adapters:,} train, {rest:,} are held, " in "\n".join(text.summary(held))
    assert f"parameters: {adapters + rest:,} in all, " in "\n".join(text.summary(free))


TWICE = {"train__accumulation": 2, "block_diffusion__block": 3}
