"""Verification and drafting: chances, residual laws, trees, tries and clocks."""

from tests.planted import Bug

VERIFY, DRAFTS, TESTS = "models/decoding/verify", "models/decoding/drafts", "tests/models/decoding"
SIBLINGS, WALK = (f"{TESTS}/verify/siblings_test.py",), (f"{TESTS}/verify/walk_test.py",)
TREES, TRIE = (f"{TESTS}/drafts/trees_test.py",), (f"{TESTS}/drafts/trie_test.py",)
CLOCK = ("tests/experiments/generation/serving/clock_test.py",)
CHAIN, PRODUCTS = (f"{TESTS}/drafts/model_test.py",), ("tests/models/products_test.py",)

BUGS = (
    Bug(
        "a rejection leaves the target's law as it was",
        f"{VERIFY}/siblings.py",
        "return jnp.where(there, rest, p), jnp.where(there, ratio(p[draft], q[draft]), 0)",
        "return p, jnp.where(there, ratio(p[draft], q[draft]), 0)",
        SIBLINGS,
    ),
    Bug(
        "drafts are taken out of the law one too late",
        f"{VERIFY}/siblings.py",
        "before = jnp.tril(jnp.ones((len(drafts),) * 2, bool), -1)",
        "before = jnp.tril(jnp.ones((len(drafts),) * 2, bool), -2)",
        SIBLINGS,
    ),
    Bug(
        "k-SEQ: as many draws as there are places for drafts",
        f"{VERIFY}/siblings.py",
        "    k = jnp.sum(valid)\n",
        "    k = most\n",
        SIBLINGS,
    ),
    Bug(
        "k-SEQ: the geometric sum has one term too few",
        f"{VERIFY}/kseq.py",
        "        total = total + jnp.where(j < jnp.asarray(k), power, 0)\n",
        "        total = total + jnp.where(j < jnp.asarray(k) - 1, power, 0)\n",
        SIBLINGS,
    ),
    Bug(
        "k-SEQ: the largest rho",
        f"{VERIFY}/kseq.py",
        "return jnp.where(good, low, middle), jnp.where(good, middle, high)",
        "return jnp.where(good, middle, low), jnp.where(good, high, middle)",
        SIBLINGS,
    ),
    Bug(
        "a walk draws with the number of the depth before",
        f"{VERIFY}/walk.py",
        "uniform[jnp.minimum(depth, D - 1)]",
        "uniform[jnp.maximum(depth - 1, 0)]",
        WALK,
    ),
    Bug(
        "the root moves with the accepted nodes",
        f"{VERIFY}/walk.py",
        "rank = slot - (length[..., None] + 1)",
        "rank = slot - length[..., None]",
        WALK,
    ),
    Bug(
        "an ancestor of an ancestor is none",
        "models/mixers/slots.py",
        "while covered < T - 1:",
        "while covered < 2 and T > 2:",
        WALK,
    ),
    Bug(
        "vectors: a proposal is kept with the chance of a draft",
        f"{VERIFY}/continuous.py",
        "return -jnp.expm1(jnp.minimum(0, log_q - log_p))",
        "return jnp.exp(jnp.minimum(0, log_q - log_p))",
        (f"{TESTS}/verify/continuous_test.py",),
    ),
    Bug(
        "DySpec: the sibling's slot is worth what the first was",
        f"{DRAFTS}/trees.py",
        "push(chance * (1 - law[y]), above, path, rest / rest.sum())",
        "push(chance, above, path, rest / rest.sum())",
        TREES,
    ),
    Bug(
        "EAGLE-2: the beam is kept, not the best of all",
        f"{DRAFTS}/trees.py",
        "best = sorted(range(len(scored)), key=lambda i: -scored[i][0])[:nodes]",
        "best = list(range(len(scored)))[:nodes]",
        TREES,
    ),
    Bug(
        "Sequoia: a child has as many levels as its parent",
        f"{DRAFTS}/sequoia.py",
        "below = T[1:m, l - 1].max(axis=-1)[::-1]",
        "below = T[1:m, l].max(axis=-1)[::-1]",
        TREES,
    ),
    Bug(
        "prompts: states lose their restart",
        f"{DRAFTS}/prompts.py",
        "whole = np.vstack([np.eye(n + 1)[n], transition])",
        "whole = np.vstack([np.eye(n + 1)[0], transition])",
        (f"{TESTS}/drafts/prompts_test.py",),
    ),
    Bug(
        "recycling: the first node of a token counts",
        f"{DRAFTS}/recycling.py",
        "later = jnp.triu((token[:, None] == token[None, :]) & valid[None, :], 1)",
        "later = jnp.tril((token[:, None] == token[None, :]) & valid[None, :], -1)",
        (f"{TESTS}/drafts/recycling_test.py",),
    ),
    Bug(
        "trie: squeezing keeps what came once",
        f"{DRAFTS}/trie.py",
        "if child.counts.get(OUTPUT, 0.0) > 1.0:",
        "if child.counts.get(OUTPUT, 0.0) >= 1.0:",
        TRIE,
    ),
    Bug(
        "trie: outputs weigh as prompts",
        f"{DRAFTS}/trie.py",
        "return prompt, out, (1.0 - self.output) * prompt + self.output * out",
        "return prompt, out, self.output * prompt + (1.0 - self.output) * out",
        TRIE,
    ),
    Bug(
        "realigned: the last token has keys",
        f"{DRAFTS}/realign.py",
        "slot = np.arange(final.max() - 1)",
        "slot = np.arange(final.max())",
        (f"{TESTS}/drafts/realign_test.py",),
    ),
    Bug(
        "PEARL: the first of the next drafts is not checked",
        "experiments/generation/serving/clock.py",
        "checked = g if post else 1",
        "checked = g - 1 if post else 1",
        CLOCK,
    ),
    Bug(
        "a CPU multiplies the first of a few rows alone",
        "models/products.py",
        "x[i : i + 1] @ kernel",
        "x[:1] @ kernel",
        PRODUCTS,
    ),
    Bug(
        "columns of a vocabulary come back in another order",
        "models/products.py",
        "(columns)[:, :R].T",
        "(columns)[:, ::-1][:, :R].T",
        PRODUCTS,
    ),
    Bug(
        "drafts of a tree are read and written in one loop",
        "models/mixers/slots.py",
        "jax.lax.cond(jnp.any(path != lie), read, lying, path)",
        "read(path)",
        ("tests/models/decoding/stream_test.py::test_the_caches_of_one_row_are_copied_by_no_round",),
    ),
    Bug(
        "drafts of a tree move where none of them lies right",
        "models/mixers/slots.py",
        "jnp.any(path != lie)",
        "jnp.all(path != lie)",
        ("tests/models/decoding/tree_test.py",),
    ),
    Bug(
        "a draft model keeps the draft that was rejected",
        "models/decoding/drafts/model.py",
        "at < seen.count[:, None] - 1",
        "at < seen.count[:, None]",
        CHAIN,
    ),
    Bug(
        "a draft model reads one token where all its drafts stay",
        "models/decoding/drafts/model.py",
        "unread = 2 if",
        "unread = 1 if",
        CHAIN,
    ),
)
