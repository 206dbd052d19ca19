"""SwiftKV: later layers read keys and values made from an early layer, so a prompt stops there. Plain functions.

Qiao et al. 2024, arXiv:2410.03960. L layers, of which the first `shared` compute keys and values from their own input;
layer i from there on makes them from norm(h), h the stream that enters layer `shared`, and of each `group` such layers
one pair serves all (AcrossKV). docs/cache.md lists the functions.
"""

import jax
import jax.numpy as jnp


def check(layers: int, shared: int, group: int) -> None:
    """Raises ValueError where there is no such layer, or the group is not 1 or more."""
    if not 1 <= shared <= layers:
        raise ValueError(f"shared={shared} is not a layer of {layers}; use {max(1, layers // 2)}.")
    if group < 1:
        raise ValueError(f"group={group} is below 1; use 1 (each layer has its own keys) or 2.")


def sources(layers: int, shared: int, group: int = 1) -> list[int]:
    """`[L]`: whose keys and values layer i reads: i below `shared`, else the first layer of its group of `group`."""
    check(layers, shared, group)
    return [i if i < shared else shared + (i - shared) // group * group for i in range(layers)]


def kv_fraction(layers: int, shared: int, group: int = 1, bits: int = 16, base: int = 16) -> float:
    """(shared + ceil((L - shared) / group)) / L * bits / base: the cache beside that of the base model."""
    return len(set(sources(layers, shared, group))) / layers * bits / base


def prefill_fraction(
    layers: int, shared: int, *, width: int, heads: int, head_width: int, hidden: int, kv: int, group: int = 1
) -> float:
    """FLOPs of a prompt token in the linear maps, beside those of all layers; gated channel of three matrices.

    Below `shared` a layer costs q, o (width * heads * head_width each), k, v (width * kv * head_width each) and
    3 width hidden; from there on only k and v, once a group. Llama-3.1-8B with half of its layers: 0.51923.

    Args:
      layers, shared: L, and how many compute the prompt whole.
      width: D; heads: N; head_width: H; hidden: F; kv: K key heads.
      group: layers that share one pair.
    """
    later = len(set(sources(layers, shared, group))) - shared
    keys = 2 * width * kv * head_width
    whole = 2 * width * heads * head_width + keys + 3 * width * hidden
    return (shared * whole + later * keys) / (layers * whole)


def merged_weights(weights: jax.Array, shared: int, group: int) -> jax.Array:
    """`[L, ...]` of key or value kernels `weights [L, ...]`: from `shared` on each group has its layers' mean."""
    L = weights.shape[0]
    rows = sources(L, shared, group)
    same = jnp.asarray([[a == b for b in rows] for a in rows], weights.dtype)
    return jnp.einsum("ab,b...->a...", same / same.sum(1, keepdims=True), weights, precision="highest")


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    scored: jax.Array,
    hidden: jax.Array,
    teacher_hidden: jax.Array,
    *,
    temperature: float = 2.0,
    weight: float = 1.0,
) -> jax.Array:
    """T^2 mean over ALL tokens of scored * KL(softmax(teacher/T) || softmax(student/T)) + weight * MSE of the streams.

    As released: unscored tokens count as zeros in the mean. The streams are those before the last layer.

    Args:
      student, teacher: logits `[..., V]`.
      scored: `[...]`, 1 where the answer is.
      hidden, teacher_hidden: `[..., D]`.
      temperature: T.
      weight: of the mean squared difference over all tokens and channels.
    """
    p, log_p = (f(teacher / temperature, axis=-1) for f in (jax.nn.softmax, jax.nn.log_softmax))
    kl = (p * (log_p - jax.nn.log_softmax(student / temperature, axis=-1))).sum(-1)
    return temperature**2 * (kl * scored).mean() + weight * jnp.square(hidden - teacher_hidden).mean()
