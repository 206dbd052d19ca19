"""The library's own attention (`jax.nn.dot_product_attention`; cuDNN on a GPU) for the masks that it knows."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.attention.scoring import Scoring
from kernels.masks import And, Causal, Full, Mask, Prefix, Window


def forward(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring) -> jax.Array:
    """out [B, T, N, H], differentiated by the library itself. Masks: Full, Causal, Window, Prefix and their `&`.

    Raises NotImplementedError, with the reason, for anything else.
    """
    options = _options(scoring.mask, q.shape, k.shape)
    if scoring.softcap is not None or scoring.sinks is not None:
        raise NotImplementedError("implementation='library' has no softcap and no sinks; use implementation='chunked'.")
    if jnp.float64 in (q.dtype, k.dtype, v.dtype):
        raise NotImplementedError(
            "implementation='library' takes its softmax in float32; use implementation='chunked' for float64."
        )
    lengths = options.get("key_value_seq_lengths")

    def attend(kind: str, q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, bias, scale=scoring.scale, implementation=kind, **options)

    if _has_cudnn() and q.dtype in (jnp.bfloat16, jnp.float16):
        out = jax.lax.platform_dependent(
            q, k, v, scoring.bias, cuda=lambda *args: attend("cudnn", *args), default=lambda *args: attend("xla", *args)
        )
    else:
        out = attend("xla", q, k, v, scoring.bias)
    # With no key at all the library returns the mean of the values.
    return out if lengths is None else jnp.where((lengths > 0)[:, None, None, None], out, 0)


def _options(mask: Mask, q_shape: tuple, k_shape: tuple) -> dict[str, Any]:
    """The library's arguments for a mask, or a refusal."""
    (B, T), S = q_shape[:2], k_shape[1]
    options: dict[str, Any] = {}
    for part in _parts(mask):
        if type(part) is Full:
            continue
        if type(part) in (Causal, Window) and T != S:
            raise NotImplementedError(
                f"implementation='library' aligns {part} with the first key, not the last, so T={T} must equal S={S}; "
                "use implementation='chunked'."
            )
        if type(part) is Causal and part.offset == 0:
            options["is_causal"] = True
        elif type(part) is Window and "local_window_size" not in options:
            options["local_window_size"] = (part.left, part.right)
        elif isinstance(part, Prefix) and "key_value_seq_lengths" not in options:
            lengths = jnp.minimum(jnp.asarray(part.n, jnp.int32).reshape(-1), S)
            options["key_value_seq_lengths"] = jnp.broadcast_to(lengths, (B,))
        else:
            raise NotImplementedError(f"implementation='library' does not know mask {mask}; use 'chunked'.")
    if "local_window_size" in options and "key_value_seq_lengths" in options:
        raise NotImplementedError(  # a row may then see nothing, which the library does not give as zero
            f"implementation='library' cannot join a window with lengths ({mask}); use implementation='chunked'."
        )
    return options


def _parts(mask: Mask) -> list[Mask]:
    return [*_parts(mask.left), *_parts(mask.right)] if isinstance(mask, And) else [mask]


def _has_cudnn() -> bool:
    return any(device.platform == "gpu" for device in jax.local_devices())
