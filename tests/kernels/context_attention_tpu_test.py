"""Compiled by the TPU compiler for eight chips: every permute travels beside attention, but for the last results."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels.context_attention import context_attention
from kernels.platforms import tpu_devices

T, N, K, H = 131_072, 8, 8, 128


def topology_mesh() -> Mesh:
    """Eight described chips of a v5e in a row."""
    return Mesh(np.array(tpu_devices("v5e:2x4")), ("context",))


def compiled(schedule: str, backward: bool) -> tuple[str, int]:
    """The scheduled program of one pass and its temporary bytes per chip."""
    mesh = topology_mesh()
    cut = NamedSharding(mesh, PartitionSpec(None, "context"))
    q, k = (jax.ShapeDtypeStruct((1, T, n, H), jnp.bfloat16, sharding=cut) for n in (N, K))
    attend = functools.partial(context_attention, mesh=mesh, schedule=schedule, mask="full", layout="schedule")
    if not backward:
        lowered = jax.jit(attend).trace(q, k, k).lower(lowering_platforms=("tpu",))
    else:
        _, gradient = jax.eval_shape(lambda *x: jax.vjp(attend, *x), q, k, k)
        lse_cut = NamedSharding(mesh, PartitionSpec(None, None, "context"))
        gradient = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut if x.ndim == 4 else lse_cut), gradient
        )
        run = jax.jit(lambda gradient, d_out: gradient(d_out), out_shardings=cut)
        lowered = run.trace(gradient, q).lower(lowering_platforms=("tpu",))
    program = lowered.compile()
    return program.as_text(), program.memory_analysis().temp_size_in_bytes


def permutes(text: str) -> list[tuple[str, bool]]:
    """For each permute of the scheduled program its name, and whether an attention kernel runs before it is done."""
    assert "is_scheduled=true" in text
    lines = text[text.index("\nENTRY") :].splitlines()
    found = []
    for start, line in enumerate(lines):
        begun = re.match(r"\s+%?([\w.\-]+) = .* collective-permute-start\(", line)
        if begun:
            done = next(
                i
                for i, other in enumerate(lines)
                if re.search(rf" collective-permute-done\([^)]*%?{re.escape(begun[1])}\)", other)
            )
            found.append((begun[1], any("tpu_custom_call" in x for x in lines[start:done])))
    assert " collective-permute(" not in text
    return found


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("schedule", ["ring", "token_ring"])
def test_permutes_travel_beside_attention(schedule, backward):
    """Keys (2 arrays, P - 1 hops) and their gradients (P); queries (1, or 4 with what belongs to them) and results."""
    text, temporary = compiled(schedule, backward)
    under_way, P = permutes(text), 8
    count = {
        ("ring", False): 2 * (P - 1), ("ring", True): 2 * (P - 1) + 2 * P,
        ("token_ring", False): (P - 1) + 2 * (P - 1), ("token_ring", True): 3 * (P - 1) + (P - 1),
    }[schedule, backward]  # fmt: skip
    assert len(under_way) == count
    bare = [name for name, beside in under_way if not beside]
    # The last results of a forward pass, out and lse, go home when all is computed.
    assert len(bare) == (0 if schedule == "ring" or backward else 2), under_way
    # No chip ever holds the scores of a block, let alone of a ring.
    assert temporary < N * (T // P) ** 2 * 4
