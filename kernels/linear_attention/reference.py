"""The recurrences themselves, one token after another: the specification of the chunked forms."""

import jax
import jax.numpy as jnp


def recurrent(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array | None,
    decay: jax.Array | None,
    memory: jax.Array,
    begins: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """out_t = q_t S_t for one document after another; a memory `[B, N, H, P]` is emptied where `begins` `[B, T]`.

    Without beta: S_t = e^decay_t S_{t-1} + k_t v_t^T. With it, and S' = e^decay_t S_{t-1}:
    S_t = S' + beta_t k_t (v_t - k_t^T S')^T. q, k `[B, T, N, H]`, v `[B, T, N, P]`, beta and decay `[B, T, N]`.
    Returns (out `[B, T, N, P]`, last memory), in the dtype of `memory`.
    """
    dtype, exact = memory.dtype, jax.lax.Precision.HIGHEST
    decay = jnp.zeros(q.shape[:3], dtype) if decay is None else decay

    def step(memory, xs):
        q, k, v, decay, begins, beta = xs
        memory = jnp.where(begins[:, None, None, None], 0, memory * jnp.exp(decay)[..., None, None])
        if beta is not None:
            v = beta[..., None] * (v - jnp.einsum("bnh,bnhp->bnp", k, memory, precision=exact))
        memory = memory + k[..., None] * v[..., None, :]
        return memory, jnp.einsum("bnh,bnhp->bnp", q, memory, precision=exact)

    first = lambda x: None if x is None else jnp.moveaxis(x, 1, 0)  # noqa: E731
    wide = [x if x is None else x.astype(dtype) for x in (q, k, v, decay)]
    xs = (*map(first, wide), first(begins), first(beta if beta is None else beta.astype(dtype)))
    memory, out = jax.lax.scan(step, memory, xs)
    return jnp.moveaxis(out, 0, 1), memory
