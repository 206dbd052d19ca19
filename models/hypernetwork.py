"""ZeTT: a small network from the pieces of a token to its embedding (Minixhofer et al. 2024, arXiv:2405.07883).

A new token is written in ids of the ORIGINAL tokenizer; its row of input and output embeddings is the first place of
what a Transformer encoder makes of those ids' own embeddings. Parameters are plain dicts, arrays are `x @ kernel`.

It is trained on a frozen model, whose tables are replaced by what it predicts for a tokenizer drawn at random
(`data.tokenizers.sampled`), by nats a token + weight * `lexical_loss`; first, it reproduces the old rows by
`lexical_loss` alone. `experiments.workdir.zett` does so.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

LONGEST = 7  # ids of a token that are read; longer tokens are cut, shorter ones padded


def surface_forms(
    pieces: Sequence[bytes], encode: Callable[[bytes], Sequence[int]], pad: int, longest: int = LONGEST
) -> np.ndarray:
    """Ids of each piece under the original tokenizer, cut and padded on the right, `[V', longest]`."""
    rows = np.full((len(pieces), longest), pad, np.int32)
    for row, piece in zip(rows, pieces, strict=True):
        ids = list(encode(piece))[:longest] if piece else []
        row[: len(ids)] = ids
    return rows


def rescaling(x: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(w, b) `[D]` such that w x + b has `mean` and `std` in every column of `x [V, D]`."""
    w = std / np.std(x, axis=0)
    return w, mean - w * np.mean(x, axis=0)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps) * scale + bias


def projector(x: jax.Array, p: Mapping[str, jax.Array]) -> jax.Array:
    """ln(x + gelu(gelu(x W1 + b1) W2 + b2)), gelu by tanh; `[..., D]`."""
    h = jax.nn.gelu(x @ p["w1"] + p["b1"], approximate=True)
    return layer_norm(x + jax.nn.gelu(h @ p["w2"] + p["b2"], approximate=True), p["scale"], p["bias"])


def encoder_layer(x: jax.Array, mask: jax.Array, p: Mapping[str, jax.Array], heads: int) -> jax.Array:
    """A layer with its norms behind (RoBERTa's): x <- ln(x + attention(x)), x <- ln(x + gelu(x W1) W2); `[V, S, D]`.

    Args:
      mask: `[V, S]` true where an id stands.
      p: wq bq wk bk wv bv wo bo, w1 b1 w2 b2, scale1 bias1, scale2 bias2. gelu is exact, eps of the norms 1e-5.
    """
    V, S, D = x.shape
    q, k, v = ((x @ p[f"w{n}"] + p[f"b{n}"]).reshape(V, S, heads, D // heads) for n in "qkv")
    scores = jnp.einsum("vsnh,vtnh->vnst", q, k) / jnp.sqrt(D // heads)
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(x.dtype).min)
    mixed = jnp.einsum("vnst,vtnh->vsnh", jax.nn.softmax(scores, axis=-1), v).reshape(V, S, D)
    x = layer_norm(x + mixed @ p["wo"] + p["bo"], p["scale1"], p["bias1"], 1e-5)
    h = jax.nn.gelu(x @ p["w1"] + p["b1"], approximate=False)
    return layer_norm(x + h @ p["w2"] + p["b2"], p["scale2"], p["bias2"], 1e-5)


def initial(key: jax.Array, D_in: int, D_out: int, width: int, layers: int, longest: int = LONGEST) -> dict:
    """Parameters for `predict` that are trained: kernels N(0, 1 / inputs), position N(0, 0.02^2), scales 1, biases 0.

    Hidden layers have 2 `width`.
    """
    keys = iter(jax.random.split(key, 7 + 6 * layers))

    def kernel(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[0])

    def wide(number: str = "") -> dict[str, jax.Array]:
        made = {"w1": kernel(width, 2 * width), "b1": jnp.zeros(2 * width), "w2": kernel(2 * width, width)}
        return made | {"b2": jnp.zeros(width), f"scale{number}": jnp.ones(width), f"bias{number}": jnp.zeros(width)}

    def layer() -> dict[str, jax.Array]:
        made = {f"w{n}": kernel(width, width) for n in "qkvo"} | {f"b{n}": jnp.zeros(width) for n in "qkvo"}
        return made | wide("2") | {"scale1": jnp.ones(width), "bias1": jnp.zeros(width)}

    return {
        "kernel": kernel(D_in, width), "bias": jnp.zeros(width), "first": wide(),
        "position": 0.02 * jax.random.normal(next(keys), (longest, width)), "last": wide(),
        "layers": [layer() for _ in range(layers)], "out_kernel": kernel(width, D_out), "out_bias": jnp.zeros(D_out),
    }  # fmt: skip


def scales(source: np.ndarray) -> dict[str, np.ndarray]:
    """in_w, in_b, out_w and out_b for `predict`, which are not trained: columns of `source [V, D]` are read with mean 0
    and deviation 1, and written with their own."""
    mean, std = source.mean(0), source.std(0)
    in_w, in_b = rescaling(source, 0.0, 1.0)
    return {"in_w": in_w, "in_b": in_b, "out_w": std, "out_b": mean}


def predict(forms: jax.Array, source: jax.Array, pad: int, p: Mapping, heads: int) -> jax.Array:
    """Embeddings of tokens, `[V', D_out]`.

    Args:
      forms: `[V', S]` of `surface_forms`, S at most the longest.
      source: `[V, D_in]` embeddings of the original ids (input and output ones side by side where they are not tied).
      pad: id of no piece.
      p: in_w in_b [D_in] and out_w out_b [D_out] (rescaling), kernel bias (to the hidden width), position [S, H],
        first and last (`projector`), layers (a sequence for `encoder_layer`), out_kernel out_bias.
      heads: of the encoder.
    """
    mask = forms != pad
    x = source[jnp.where(mask, forms, 0)] * p["in_w"] + p["in_b"]
    x = projector(x @ p["kernel"] + p["bias"], p["first"]) + p["position"][: forms.shape[1]]
    for layer in p["layers"]:
        x = encoder_layer(x, mask, layer, heads)
    made = projector(x[:, 0], p["last"]) @ p["out_kernel"] + p["out_bias"]
    return made * p["out_w"] + p["out_b"]


def lexical_loss(predicted: jax.Array, source: jax.Array, forms: jax.Array, pad: int) -> jax.Array:
    """Mean distance (Euclidean) from the source row of the tokens that are ONE original id; 0 where there are none.

    Args:
      predicted: `[V', D]`. source: `[V, D]`. forms: `[V', S]`.
    """
    single = (forms[:, 0] != pad) & (forms[:, 1] == pad)
    apart = predicted - source[jnp.where(single, forms[:, 0], 0)]
    squares = jnp.sum(jnp.square(apart), axis=-1)
    distance = jnp.sqrt(jnp.where(squares > 0, squares, 1)) * (squares > 0)
    return jnp.sum(jnp.where(single, distance, 0)) / jnp.maximum(jnp.sum(single), 1)
