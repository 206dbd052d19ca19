"""Numerics of the ops: reference forms, chunked forms, masks, and the plans of sequences that are shared."""

from tests.planted import Bug

MIXERS = ("tests/models/values/mixers_test.py",)
ENTROPY = ("tests/kernels/cross_entropy_test.py",)
ENTROPY_KERNELS = ("tests/kernels/cross_entropy_kernels_test.py",)
LACT_TPU = ("tests/kernels/lact_kernels_test.py",)
TTT_TPU = ("tests/kernels/ttt_kernels_test.py",)
FUSED = ("tests/kernels/linear_attention_kernels_test.py",)
LINEAR = ("tests/kernels/linear_attention_test.py", *MIXERS)
TTT = (*MIXERS, "tests/kernels/ttt_test.py")
LACT = (*MIXERS, "tests/kernels/lact_test.py::test_equals_the_definition_with_gradients")
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
        "linear attention: a token does not see itself",
        "kernels/linear_attention/chunked.py",
        "(order[:, None] >= order)",
        "(order[:, None] > order)",
        LINEAR,
    ),
    Bug(
        "delta rule: what a chunk knew before is not decayed",
        "kernels/linear_attention/chunked.py",
        "k, memory, dtype) * rest.entering[..., None]",
        "k, memory, dtype)",
        LINEAR,
    ),
    Bug(
        "delta rule: the system with the diagonal's neighbour cut",
        "kernels/linear_attention/chunked.py",
        "rest.pair * beta, -1)",
        "rest.pair * beta, -2)",
        LINEAR,
    ),
    Bug(
        "a memory that leaves a chunk keeps the first token's share",
        "kernels/linear_attention/chunked.py",
        "pair[..., -1, :], entering[..., -1]",
        "pair[..., 0, :], entering[..., -1]",
        LINEAR,
    ),
    Bug(
        "LaCT on a GPU: the units of a tile begin one later",
        "kernels/lact/gpu.py",
        "units = pl.ds(at * size, size)",
        "units = pl.ds(at * (size - 1), size)",
        LACT_TPU,
    ),
    Bug(
        "TTT on a GPU: the gradient of the last maps is taken for that of the first",
        "kernels/ttt/gpu.py",
        "passed = [d + (1 - learned) * x for",
        "passed = [x + 0 * d for",
        TTT_TPU,
    ),
    Bug(
        "TTT on a GPU: a group begins one mini-batch early",
        "kernels/ttt/gpu.py",
        "number[0] * group + inner, kept[0].dtype",
        "number[0] * (group - 1) + inner, kept[0].dtype",
        TTT_TPU,
    ),
    Bug(
        "kernels of TTT: a mini-batch that nothing follows is walked back as if it had been learned from",
        "kernels/ttt/tpu.py",
        "pairs([learned * d for d in after])",
        "pairs(after)",
        TTT_TPU,
    ),
    Bug(
        "kernels of TTT: the maps after a mini-batch are taken for those before it",
        "kernels/ttt/tpu.py",
        "layers = pairs([ref[place, head] for ref in stack])",
        "layers = pairs([ref[head] for ref in held])",
        TTT_TPU,
    ),
    Bug(
        "kernels of LaCT: each tile begins the sums anew",
        "kernels/lact/tpu.py",
        "@pl.when(pl.program_id(1) == 0)",
        "@pl.when(pl.program_id(1) >= 0)",
        LACT_TPU,
    ),
    Bug(
        "kernels of LaCT: the rate of another matrix",
        "kernels/lact/tile.py",
        "product(v, lr1 * (act * up)",
        "product(v, lr2 * (act * up)",
        LACT_TPU,
    ),
    Bug(
        "kernels of linear attention: a memory is kept after its chunk",
        "kernels/linear_attention/tpu.py",
        "jax.lax.rem(at, jnp.int32(group)) == 0",
        "jax.lax.rem(at + 1, jnp.int32(group)) == 0",
        FUSED,
    ),
    Bug(
        "kernels of linear attention: the walk back applies the map and not its transpose",
        "kernels/linear_attention/gpu.py",
        'form = "tn" if backward else "nn"',
        'form = "nn"',
        FUSED,
    ),
    Bug(
        "kernels of linear attention: a document's memory leaks into the next one of its chunk",
        "kernels/linear_attention/tile.py",
        "jnp.where(at == 0, jnp.exp(after), 0),",
        "jnp.exp(after),",
        FUSED,
    ),
    Bug(
        "kernels of linear attention: the gradient of the last memory is dropped",
        "kernels/linear_attention/tpu.py",
        "d_memory[...] = d_last[...]",
        "d_memory[...] = jnp.zeros_like(d_last)",
        FUSED,
    ),
    Bug(
        "a tile's inverse: its gradient with the wrong sign",
        "kernels/tiles.py",
        "return (-_dot(_dot(found, gradient",
        "return (_dot(_dot(found, gradient",
        FUSED,
    ),
    Bug(
        "TTT: the rate of a place one too small",
        "kernels/ttt/reference.py",
        "1 / jnp.arange(1, mini_batch + 1",
        "1 / jnp.arange(2, mini_batch + 2",
        TTT,
    ),
    Bug(
        "TTT: the inner norm's gradient without its mean",
        "kernels/ttt/reference.py",
        "(error - mean(error) - hat",
        "(error - hat",
        TTT,
    ),
    Bug("TTT: the bias is not learned", "kernels/ttt/reference.py", "dtype) + 1) * eta", "dtype) + 0) * eta", TTT),
    Bug(
        "TTT: the next mini-batch moved by the first place's rate",
        "kernels/ttt/chunked.py",
        "return ref.update(layers, steps, rate[-1] * tokens[2]",
        "return ref.update(layers, steps, rate[0] * tokens[2]",
        TTT,
    ),
    Bug(
        "TTT in documents: moved by the first place's rate",
        "kernels/ttt/chunked.py",
        "ref.gradients(layers, norm, k, v), rate[-1] * eta",
        "ref.gradients(layers, norm, k, v), rate[0] * eta",
        TTT,
    ),
    Bug(
        "LaCT: the slope of SiLU",
        "kernels/lact/reference.py",
        "sigma * (1 + gate * (1 - sigma))",
        "sigma * (1 + gate * sigma)",
        LACT,
    ),
    Bug(
        "LaCT: momentum keeps the gradient alone",
        "kernels/lact/reference.py",
        "        momentum = update\n",
        "        momentum = gradient\n",
        LACT,
    ),
    Bug(
        "LaCT: rates of the first and the third matrix swapped",
        "kernels/lact/reference.py",
        "lr0, lr1, lr2 = jnp.moveaxis",
        "lr2, lr1, lr0 = jnp.moveaxis",
        LACT,
    ),
    Bug(
        "LaCT: pre-normalised weights at once",
        "kernels/lact/reference.py",
        'if rule.normalize != "pre":',
        'if rule.normalize == "none":',
        LACT,
    ),
    Bug(
        "Newton-Schulz: a digit of its second step",
        "kernels/newton_schulz/reference.py",
        "(3.9505, -6.3029, 2.6377)",
        "(3.9505, -6.3092, 2.6377)",
        (*MIXERS, "tests/kernels/newton_schulz_test.py"),
    ),
    Bug(
        "Newton-Schulz: the square of the Gram matrix left out",
        "kernels/newton_schulz/reference.py",
        "b * gram + c * product(gram, gram)",
        "b * gram + c * gram",
        (*MIXERS, "tests/kernels/newton_schulz_test.py"),
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
)
