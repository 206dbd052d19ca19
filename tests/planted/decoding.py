"""Samplers: what they draw, how much they reveal, and what calls cost."""

from tests.planted import Bug

FOLDER, TESTS = "models/decoding", "tests/models/decoding"
CANVAS = f"{FOLDER}/canvas"
DIFFUSION, SAMPLING = (f"{TESTS}/canvas/diffusion_test.py",), (f"{TESTS}/sampling_test.py",)
ASSD, REVEAL = (f"{TESTS}/canvas/assd_test.py",), (f"{TESTS}/canvas/reveal_test.py",)

BUGS = (
    Bug(
        "top-p leaves out the token that reaches p",
        f"{FOLDER}/sampling.py",
        "reaching = (before < p)",
        "reaching = (before + probabilities < p)",
        SAMPLING,
    ),
    Bug(
        "min-p against the sum",
        f"{FOLDER}/sampling.py",
        "jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)",
        "jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jnp.log(p)",
        SAMPLING,
    ),
    Bug(
        "temperature multiplies",
        f"{FOLDER}/sampling.py",
        "logits.astype(jnp.float32) / temperature",
        "logits.astype(jnp.float32) * temperature",
        SAMPLING,
    ),
    Bug(
        "rare tokens are cut",
        f"{FOLDER}/categorical.py",
        'jnp.promote_types(dtype, jnp.float32), mode="high")',
        "jnp.promote_types(dtype, jnp.float32))",
        (f"{TESTS}/categorical_test.py",),
    ),
    Bug(
        "banned ids may be drawn",
        f"{FOLDER}/autoregressive.py",
        "            out |= ids == token\n",
        "            out |= ids == -token - 1\n",
        SAMPLING,
    ),
    Bug(
        "a done row goes on",
        f"{FOLDER}/autoregressive.py",
        "token = jnp.where(p.done, max(sampler.eos, 0), token)",
        "token = jnp.where(p.done, token, token)",
        (f"{TESTS}/progress_test.py",),
    ),
    Bug(
        "ancestral: too few masks are revealed",
        f"{CANVAS}/diffusion.py",
        "return (now - then + sigma * keep) / now, sigma",
        "return (now - then) / now, sigma",
        DIFFUSION,
    ),
    Bug(
        "ancestral: prompts may be masked again",
        f"{CANVAS}/diffusion.py",
        "~masked & ~prompt & (noise < down)",
        "~masked & (noise < down)",
        DIFFUSION,
    ),
    Bug(
        "first hitting: the next time without the root",
        f"{CANVAS}/diffusion.py",
        "rate * u ** (1 / jnp.maximum(masks, 1))",
        "rate * u",
        DIFFUSION,
    ),
    Bug(
        "cached: calls that were not needed",
        f"{CANVAS}/diffusion.py",
        "needs = needs & stale",
        "needs = needs | stale",
        DIFFUSION,
    ),
    Bug(
        "confidence: a block's tokens shared out unevenly",
        f"{CANVAS}/diffusion.py",
        "total // each + (i % each < total % each)",
        "total // each + (i % each <= total % each)",
        DIFFUSION,
    ),
    Bug(
        "score steps: the last one leaves masks",
        f"{CANVAS}/diffusion.py",
        "| (i < steps - 1)",
        "| (i < steps)",
        (f"{TESTS}/canvas/scores_end_test.py",),
    ),
    Bug(
        "guidance: the plain share at w",
        f"{CANVAS}/reveal.py",
        "(1 + guidance) * with_prompt",
        "guidance * with_prompt",
        (*REVEAL, *DIFFUSION),
    ),
    Bug(
        "margin: the sum of the two",
        f"{CANVAS}/reveal.py",
        "best[..., 0] - best[..., 1]",
        "best[..., 0] + best[..., 1]",
        REVEAL,
    ),
    Bug("factor: n in place of n + 1", f"{CANVAS}/reveal.py", "1 - factor / (n + 1)", "1 - factor / n", REVEAL),
    Bug(
        "threshold: nothing below it",
        f"{CANVAS}/reveal.py",
        "jnp.maximum((conf >= threshold).sum(-1), jnp.isfinite(conf).any(-1))",
        "(conf >= threshold).sum(-1)",
        REVEAL,
    ),
    Bug(
        "ties to the right",
        f"{CANVAS}/reveal.py",
        "jnp.argsort(jnp.argsort(-conf, -1, stable=True), -1)",
        "jnp.argsort(jnp.argsort(conf, -1, stable=True, descending=False)[..., ::-1], -1)",
        REVEAL,
    ),
    Bug(
        "drafts: repaired from the oracle's law",
        f"{CANVAS}/assd.py",
        "excess = jnp.maximum(p - q, 0.0)",
        "excess = p",
        ASSD,
    ),
    Bug(
        "drafts: the ratio the other way",
        f"{CANVAS}/assd.py",
        "jnp.exp(at_draft(log_p) - at_draft(log_q))",
        "jnp.exp(at_draft(log_q) - at_draft(log_p))",
        ASSD,
    ),
    Bug(
        "drafts: a rejected one counts as drawn",
        f"{CANVAS}/assd.py",
        "accepted = jnp.cumprod(good, -1).sum(-1)",
        "accepted = good.sum(-1)",
        ASSD,
    ),
    Bug(
        "insertion: tokens land before their slot",
        f"{CANVAS}/insertion.py",
        "jnp.where(index == slot[:, None] + 1, token",
        "jnp.where(index == slot[:, None], token",
        (f"{TESTS}/canvas/insertion_test.py",),
    ),
    Bug(
        "insertion: the coin of going on",
        f"{CANVAS}/insertion.py",
        '"sample": coin < p_stop',
        '"sample": coin > p_stop',
        (f"{TESTS}/canvas/insertion_test.py",),
    ),
    Bug(
        "categorical: one noise for two purposes",
        f"{FOLDER}/categorical.py",
        "jax.random.fold_in(jax.random.fold_in(k, w), purpose)",
        "jax.random.fold_in(k, w)",
        (f"{TESTS}/categorical_test.py", *DIFFUSION),
    ),
)
