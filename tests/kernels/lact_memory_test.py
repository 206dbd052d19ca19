"""LaCT's memory as the compiler counts it: what grows with the length of the sequence, and what must not."""

import jax
import jax.numpy as jnp
import pytest

from kernels.lact import lact


def temporaries(length, chunk, backward):
    """(bytes of temporaries, bytes of inputs and outputs) of two rows of this length."""
    tokens, rates = (jax.ShapeDtypeStruct((2, length, 1, n), jnp.float32) for n in (16, 3))
    args = (tokens, tokens, tokens, rates, (jax.ShapeDtypeStruct((1, 1, 16, 16), jnp.float32),) * 3)

    def loss(args):
        return jnp.sum(lact(*args, chunk_size=chunk, momentum=args[3][..., 0], newton_schulz_steps=5)[0])

    f = jax.grad(loss) if backward else lambda a: lact(*a, chunk_size=chunk, newton_schulz_steps=5)[0]
    memory = jax.jit(f).lower(args).compile().memory_analysis()
    return memory.temp_size_in_bytes, memory.argument_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize("chunk", [64, 1024])
def test_forward_memory_does_not_grow_with_length(chunk):
    short, _ = temporaries(8192, chunk, backward=False)
    long, _ = temporaries(65536, chunk, backward=False)
    assert long <= short + 65536  # bookkeeping only; one output alone is 8 MiB


@pytest.mark.parametrize("chunk", [16, 1024])
def test_backward_memory_stays_below_inputs_and_outputs(chunk):
    short, _ = temporaries(8192, chunk, backward=True)
    long, in_and_out = temporaries(65536, chunk, backward=True)
    assert long - short <= in_and_out
