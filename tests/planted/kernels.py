"""Numerics of the ops: reference forms, chunked forms, masks, and the plans of sequences that are shared."""

from tests.planted import Bug

ENTROPY = ("tests/kernels/cross_entropy_test.py",)
ENTROPY_KERNELS = ("tests/kernels/cross_entropy_kernels_test.py",)
FUSED = ("tests/kernels/linear_attention_kernels_test.py",)
ATTENTION = tuple(
    f"tests/kernels/attention_test.py::test_{name}"
    for name in ("the_specification_itself", "bias_softcap_and_sinks", "masks_with_arrays", "merge_of_any_split")
)
MASKS = ("tests/kernels/masks_test.py",)
PATTENTION = (
    "tests/models/values/channels_test.py",
    "tests/kernels/pattention_test.py::test_values_and_gradients_in_float64",
)
SHARED = ("tests/kernels/context_attention_test.py::test_equals_one_device",)

BUGS = (
    Bug(
        "cross-entropy: the z-loss half as steep",
        "kernels/cross_entropy/__init__.py",
        "(1 + 2 * z_loss * log_z[:, None])",
        "(1 + z_loss * log_z[:, None])",
        ENTROPY,
    ),
    Bug(
        "cross-entropy: the cap after the gradient",
        "kernels/cross_entropy/__init__.py",
        "(d_logits,) = shape_vjp(d_logits)\n",
        "(d_logits,) = (d_logits,)\n",
        ENTROPY,
    ),
    Bug(
        "cross-entropy: padding at the front",
        "kernels/cross_entropy/__init__.py",
        "jnp.pad(a, [(0, pad)]",
        "jnp.pad(a, [(pad, 0)]",
        ENTROPY,
    ),
    Bug(
        "cross-entropy on a TPU: classes behind the last one count",
        "kernels/cross_entropy/tpu.py",
        "logits = jnp.where(tile.exist, tile.logits, NOTHING)",
        "logits = tile.logits",
        ENTROPY_KERNELS,
    ),
    Bug(
        "cross-entropy on a TPU: the sum below a larger logit is not made smaller",
        "kernels/cross_entropy/tpu.py",
        "total[i, :] * jnp.exp(before - after) + added",
        "total[i, :] + added",
        ENTROPY_KERNELS,
    ),
    Bug(
        "cross-entropy on a TPU: a sum of the features is read before it was written",
        "kernels/cross_entropy/tpu.py",
        "@pl.when(step >= slots)  #",
        "@pl.when(step > slots)  #",
        ENTROPY_KERNELS,
    ),
    Bug(
        "cross-entropy on a TPU: tokens behind the last one reach the head's gradient",
        "kernels/cross_entropy/tpu.py",
        "tokens = jnp.where(ids < length, tokens, jnp.zeros_like(tokens))",
        "tokens = jnp.where(ids <= length, tokens, jnp.zeros_like(tokens))",
        ENTROPY_KERNELS,
    ),
    Bug(
        "cross-entropy on a GPU: a block's classes are counted from zero",
        "kernels/cross_entropy/gpu.py",
        "hit = (first[0] + start + jnp.arange(tiles[1]))",
        "hit = (start + jnp.arange(tiles[1]))",
        ENTROPY_KERNELS,
    ),
    Bug(
        "cross-entropy on a GPU: the cap is not in the gradient",
        "kernels/cross_entropy/gpu.py",
        "d = d * (1 - (logits / options.softcap) ** 2)",
        "d = d * 1",
        ENTROPY_KERNELS,
    ),
    Bug(
        "logits: the cap without its division",
        "kernels/cross_entropy/reference.py",
        "softcap * jnp.tanh(logits / softcap)",
        "softcap * jnp.tanh(logits)",
        (*ENTROPY, "tests/models/values/model_test.py"),
    ),
    Bug(
        "a tile's inverse: its gradient with the wrong sign",
        "kernels/tiles.py",
        "return (-_dot(_dot(found, gradient",
        "return (_dot(_dot(found, gradient",
        FUSED,
    ),
    Bug(
        "attention on a CPU: what is full before documents are known stays full",
        "kernels/attention/tiling.py",
        "np.minimum(table, schedule.PARTIAL) if few",
        "table if few",
        ("tests/kernels/attention_test.py::test_few_tiles_are_computed_without_looking_for_empty_ones",),
    ),
    Bug(
        "attention, chunked: sums not rescaled with the maximum",
        "kernels/attention/chunked.py",
        "return new, total * keep + weight.sum(-1), out",
        "return new, total + weight.sum(-1), out",
        ATTENTION,
    ),
    Bug(
        "attention: no gradient of the log-sum",
        "kernels/attention/chunked.py",
        "delta = delta - cotangent.lse.astype(dtype)",
        "delta = delta + 0",
        ATTENTION,
    ),
    Bug(
        "attention, chunked: the keys' gradient by the values'",
        "kernels/attention/chunked.py",
        "dk = tiling.add(dk, tiling.dot(d_score, q_tile,",
        "dk = tiling.add(dk, tiling.dot(weight, q_tile,",
        ATTENTION,
    ),
    Bug(
        "attention: the cap without its division",
        "kernels/attention/reference.py",
        "score = softcap * jnp.tanh(score / softcap)",
        "score = softcap * jnp.tanh(score)",
        ATTENTION,
    ),
    Bug(
        "masks: a negative position is seen",
        "kernels/masks.py",
        "return seen & (spread(k, q) >= 0) & (spread(q, k) >= 0)",
        "return seen & (spread(q, k) >= 0)",
        MASKS,
    ),
    Bug(
        "masks: a query stream sees itself",
        "kernels/masks.py",
        "return k_vectors[0] < q_vectors[0] if self.strict",
        "return k_vectors[0] <= q_vectors[0] if self.strict",
        MASKS,
    ),
    Bug(
        "masks: a tree's node sees its cousins",
        "kernels/masks.py",
        "return enter, enter + size[:n]",
        "return enter, enter + size[:n] + 1",
        MASKS,
    ),
    Bug(
        "pattention: the backward pass without the norm's share",
        "kernels/pattention/xla.py",
        "da = r * (dz - unit * total(c))",
        "da = r * dz",
        PATTENTION,
    ),
    Bug(
        "pattention: what the router dropped has a gradient",
        "kernels/pattention/xla.py",
        "da = jnp.where(mask, da, 0)",
        "da = da * 1",
        PATTENTION,
    ),
    Bug(
        "shared sequences: partners on the other side",
        "kernels/context_attention/plan.py",
        "partner = (ranks - direction * t)",
        "partner = (ranks + direction * t)",
        SHARED,
    ),
    Bug(
        "shared sequences: a last step with idle ranks is dropped",
        "kernels/context_attention/plan.py",
        "not steps[-1].blocks.any()",
        "not steps[-1].blocks.all()",
        SHARED,
    ),
    Bug(
        "a window's tile is full as far to the right as to the left",
        "kernels/mask_rules.py",
        "(nearest >= -self.left) & (farthest <= self.right)",
        "(nearest >= -self.left) & (farthest <= self.left)",
        ("tests/kernels/masks_test.py",),
    ),
    Bug(
        "queries before the first key stand in the first block",
        "kernels/mask_rules.py",
        "raised = xp.maximum(index, -size) + size",
        "raised = xp.maximum(index, 0) + size",
        ("tests/kernels/masks_test.py",),
    ),
)
