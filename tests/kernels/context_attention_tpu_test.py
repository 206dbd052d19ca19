"""Compiled by the TPU compiler for four chips: the permutes are asynchronous, most of them beside attention."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels.context_attention import context_attention
from kernels.platforms import tpu_devices

T, N, K, H = 8192, 8, 8, 128


def topology_mesh() -> Mesh:
    """Four described chips of a v5e in a row."""
    return Mesh(np.array(tpu_devices("v5e:2x2")), ("context",))


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
    """For each permute of the scheduled program its name and whether an attention kernel runs before it is done."""
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
            beside = [other for other in lines[start:done] if "tpu_custom_call" in other]
            found.append((begun[1], bool(beside)))
    assert " collective-permute(" not in text
    return found


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("schedule", ["ring", "token_ring"])
def test_it_compiles_for_four_chips_and_permutes_beside_attention(schedule, backward):
    text, temporary = compiled(schedule, backward)
    under_way = permutes(text)
    assert len(under_way) >= 3
    bare = [name for name, beside in under_way if not beside]
    if schedule == "token_ring" and not backward:  # The last results go home with nothing left to compute.
        assert len(bare) < len(under_way) / 2, under_way
    else:
        assert not bare, under_way
    # No chip ever holds the scores of a block, let alone of a ring.
    assert temporary < N * (T // 4) ** 2 * 4
