"""The yardstick: a Transformer's training step and greedy decoder written by hand in plain JAX, no framework.

The same mathematics as `configs/transformer.py` (RMSNorm, rotary positions, GELU MLP, tied head, AdamW), jitted, state
donated, and the fastest form of it that we know on a CPU: all tokens as one matrix `[B*T, D]`, one product for q, k and
v, cos and sin as constants, the GELU computed again on the way back, attention in causal blocks of 128, the program
ordered for memory.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 128


def init(key: jax.Array, *, V: int, D: int, L: int, F: int) -> dict:
    """Parameters as nested dicts, one entry per layer."""
    keys = iter(jax.random.split(key, 1 + 4 * L))
    kernel = lambda a, b: 0.02 * jax.random.normal(next(keys), (a, b))  # noqa: E731
    layers = [
        {
            "norm1": jnp.ones(D), "qkv": kernel(D, 3 * D), "o": kernel(D, D),
            "norm2": jnp.ones(D), "up": kernel(D, F), "down": kernel(F, D),
        }
        for _ in range(L)
    ]  # fmt: skip
    return {"embedding": kernel(V, D), "layers": layers, "norm": jnp.ones(D)}


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`[..., D]`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def turns(T: int, H: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the positions 0..T-1, `[T, 1, H/2]`."""
    angle = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(0, H, 2) / H)
    return jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`[B, T, N, H]`, cos and sin `[T, 1, H/2]`."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`[B, T, N, H]` each; query blocks of 128 see the keys up to their own end."""
    T, H = q.shape[1], q.shape[-1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    outs = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        s = jnp.einsum("bnth,bnsh->bnts", q[:, :, start:end], k[:, :, :end]) / math.sqrt(H)
        seen = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
        p = jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1)
        outs.append(jnp.einsum("bnts,bnsh->bnth", p, v[:, :, :end]))
    return jnp.concatenate(outs, axis=2).transpose(0, 2, 1, 3)


def loss_fn(params: dict, tokens: jax.Array, targets: jax.Array, *, N: int) -> jax.Array:
    """Mean cross-entropy of `[B, T]` tokens."""
    B, T = tokens.shape
    x = params["embedding"][tokens.reshape(-1)]
    D = x.shape[-1]
    cos, sin = turns(T, D // N)
    for layer in params["layers"]:
        q, k, v = project(x, layer, (B, T, N, D // N))
        out = causal_attention(rotary(q, cos, sin), rotary(k, cos, sin), v)
        x = x + out.reshape(B * T, D) @ layer["o"]
        h = rms_norm(x, layer["norm2"])
        x = x + jax.checkpoint(jax.nn.gelu)(h @ layer["up"]) @ layer["down"]
    logits = rms_norm(x, params["norm"]) @ params["embedding"].T
    at_target = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - at_target)


def project(x: jax.Array, layer: dict, shape: tuple[int, ...]) -> list[jax.Array]:
    """q, k, v `[B, T, N, H]` of x `[B*T, D]`."""
    return [y.reshape(shape) for y in jnp.split(rms_norm(x, layer["norm1"]) @ layer["qkv"], 3, axis=-1)]


def train_step(*, N: int, compiler_options: Mapping[str, str] | None = None) -> Callable:
    """`(state, tokens [B, T], targets [B, T]) -> (state, loss)`, jitted: AdamW with a constant rate.

    `state = (params, m, v, step)`, donated.
    """

    def step(state: tuple, tokens: jax.Array, targets: jax.Array) -> tuple[tuple, jax.Array]:
        params, m, v, count = state
        loss, grads = jax.value_and_grad(functools.partial(loss_fn, N=N))(params, tokens, targets)
        count = count + 1
        b1, b2, rate, decay = 0.9, 0.95, 1e-3, 0.1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)
        c1, c2 = 1 - b1**count, 1 - b2**count
        params = jax.tree.map(lambda p, m, v: p - rate * (m / c1 / (jnp.sqrt(v / c2) + 1e-8) + decay * p), params, m, v)
        return (params, m, v, count), loss

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options)


def init_state(key: jax.Array, **sizes: int) -> tuple:
    """Parameters, zero moments, step 0."""
    params = init(key, **sizes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return params, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.float32)


@functools.partial(jax.jit, static_argnames=("N", "max_new"))
def decode(params: dict, prompt: jax.Array, *, N: int, max_new: int) -> jax.Array:
    """Greedy: prompt `[B, T]` -> `[B, max_new]` with a preallocated cache and one `while_loop`."""
    B, T = prompt.shape
    D = params["embedding"].shape[1]
    S, H = T + max_new, D // N
    # One row without its dimension, keys as the rows of the product: so XLA reads each cache where it lies.
    rows, b, scores, keys = ((), "", "nst", -2) if B == 1 else ((B,), "b", "bnts", -1)
    slots = [(jnp.zeros((*rows, N, S, H)), jnp.zeros((*rows, N, S, H))) for _ in params["layers"]]
    cos, sin = turns(S, H)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-2)

    def forward(tokens: jax.Array, start: jax.Array, slots: list) -> tuple[jax.Array, list]:
        t = tokens.shape[1]
        x = params["embedding"][tokens.reshape(-1)]
        turn = [jax.lax.dynamic_slice_in_dim(y, start, t) for y in (cos, sin)]
        new = []
        for layer, slot in zip(params["layers"], slots, strict=True):
            q, k, v = project(x, layer, (*rows, t, N, H))
            slot = put(slot[0], rotary(k, *turn).swapaxes(-3, -2), start), put(slot[1], v.swapaxes(-3, -2), start)
            s = jnp.einsum(f"{b}nsh,{b}tnh->{scores}", slot[0], rotary(q, *turn)) / math.sqrt(H)
            seen = start + jnp.arange(t)[:, None] >= jnp.arange(S)
            p = jax.nn.softmax(jnp.where(seen.T if B == 1 else seen, s, -1e30), axis=keys)
            out = jnp.einsum(f"{scores},{b}nsh->{b}tnh", p, slot[1])
            x = x + out.reshape(B * t, D) @ layer["o"]
            x = x + jax.nn.gelu(rms_norm(x, layer["norm2"]) @ layer["up"]) @ layer["down"]
            new.append(slot)
        last = rms_norm(x.reshape(B, t, D)[:, -1], params["norm"])
        return jnp.argmax(last @ params["embedding"].T, axis=-1), new

    token, slots = forward(prompt, jnp.int32(0), slots)
    out = jnp.zeros((B, max_new), token.dtype).at[:, 0].set(token)

    def step(carry: tuple) -> tuple:
        i, token, out, slots = carry
        token, slots = forward(token[:, None], T + i - 1, slots)
        return i + 1, token, jax.lax.dynamic_update_slice(out, token[:, None], (0, i)), slots

    return jax.lax.while_loop(lambda carry: carry[0] < max_new, step, (jnp.int32(1), token, out, slots))[2]
