"""How many layers a token takes: SkipDecode's schedule and exits of each layer, with what they cost.

SkipDecode (Del Corro et al. 2023, arXiv:2307.02628) lets the number of layers depend on the position alone and fall
along the text; a layer that is skipped writes no keys and values, and no later token needs them. Exits with a
class "stop" (Sun et al. 2024, arXiv:2401.09964) end a completion that would be wrong.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.depth import EXIT, GO_ON, STOP

Array = jax.Array


class Cost(NamedTuple):
    """calls: layers computed; written: layers that wrote keys and values, summed over tokens."""

    calls: int
    written: int


def layers_at(position: Array, prompt: Array | int, length: Array | int, most: int, least: Array | int) -> Array:
    """n(t): `most` in the prompt, then falling linearly from `most` to `least` at the last position, rounded: `[...]`.

    Positions count from 0; the first generated one is `prompt`, the last `length - 1`. The same for every row.
    """
    share = (jnp.asarray(position) - prompt) / jnp.maximum(1, length - 1 - prompt)
    n = most - (most - least) * jnp.clip(share, 0, 1)
    return jnp.round(n).astype(jnp.int32)


def active(n: Array, layers: int, warm_up: int = 1) -> Array:
    """Which layers run, `[..., layers]` bool: the first `warm_up` and the last n - warm_up: n `[...]`.

    Sets are nested: fewer layers are among more, so that in every layer that runs all earlier tokens have keys.
    """
    index = jnp.arange(layers)
    return (index < warm_up) | (index >= layers - (jnp.asarray(n)[..., None] - warm_up))


def skip_cost(prompt: int, length: int, most: int, least: int) -> Cost:
    """Of a whole text: sum of n(t) calls; as many layers write."""
    calls = int(np.sum(np.asarray(layers_at(np.arange(length), prompt, length, most, least))))
    return Cost(calls, calls)


def exit_at(decision: Array) -> tuple[Array, Array]:
    """(layers computed, whether the completion stops): classes GO_ON, EXIT, STOP behind each layer, `[..., L]`.

    The first layer that does not go on decides; the last layer is an exit.
    """
    decision = jnp.asarray(decision)
    out = decision != GO_ON
    any_ = jnp.any(out, axis=-1)
    first = jnp.where(any_, jnp.argmax(out, axis=-1), decision.shape[-1] - 1)
    stops = any_ & (jnp.take_along_axis(decision, first[..., None], axis=-1)[..., 0] == STOP)
    return first + 1, stops


def exit_labels(predicted: Array, wanted: Array) -> Array:
    """Labels `[..., L]` for training the classifiers: predicted `[..., L]` is the token of each layer, wanted `[...]`.

    EXIT where the layer's token is right; STOP where neither it nor a later layer's is; else GO_ON.
    """
    right = jnp.asarray(predicted) == jnp.asarray(wanted)[..., None]
    later = jax.lax.cummax(right.astype(jnp.int32), axis=right.ndim - 1, reverse=True) > 0
    return jnp.where(right, EXIT, jnp.where(later, GO_ON, STOP))


def confident_exit(log_p: Array, threshold: float) -> Array:
    """Layers computed where a token leaves at the first layer whose largest probability reaches the threshold.

    log_p `[..., L, V]` of each layer -> `[...]`. Above 1: all layers.
    """
    sure = jnp.max(jnp.exp(log_p), axis=-1) >= threshold
    return exit_at(jnp.where(sure, EXIT, GO_ON))[0]


def exit_cost(computed: np.ndarray, layers: int, fill: bool) -> Cost:
    """Of tokens that computed so many layers `[T]`: calls, and layers that wrote keys and values.

    fill: layers above an exit write keys and values from the state that left (their projections only), so that later
    tokens find them; otherwise later tokens that go deeper cannot see this one there.
    """
    computed = np.asarray(computed)
    calls = int(computed.sum())
    return Cost(calls, layers * len(computed) if fill else calls)
