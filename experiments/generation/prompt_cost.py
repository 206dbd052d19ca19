"""What a prompt costs, by the compiled program that reads it: FLOPs and the bytes that it leaves behind."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.program import Program
from kernels import masks


def flops(program: Program, length: int) -> float:
    """FLOPs a token of the pass that fills the decoding state with a prompt of `length` tokens.

    Its features are read by nobody, so that what enters no state is no part of the compiled program: queries, outputs
    and channel of the last layer, and of a rewired model of all later ones. Loops are unrolled by the decoder; matrix
    products of all pairs of tokens count, whatever the mask hides.
    """

    def read(params: Any, tokens: jax.Array) -> Any:
        model = program.decoder(params).for_decoding()
        told = {"positions": jnp.arange(length)[None], "state": model.init_state(1, length), "fresh": True}
        return model(tokens, mask=masks.Causal(), **told).state

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return jax.jit(read).lower(program.abstract["params"], tokens).compile().cost_analysis()["flops"] / length
