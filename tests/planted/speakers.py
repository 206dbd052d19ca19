"""Who writes a token and who it comes from: routers, roles, the claim of two models."""

from tests.planted import Bug

CONTROL = "models/decoding/control"
STEPS = ("tests/models/decoding/control/steps_test.py",)
ROUTER, ROLES = ("tests/models/objectives/router_test.py",), ("tests/models/roles_test.py",)
PAIRS = ("tests/experiments/claims/pairs_test.py",)

BUGS = (
    Bug(
        "a router reads the large model's token",
        "models/objectives/router.py",
        "embedded = jax.lax.stop_gradient(model.embed(own))",
        "embedded = jax.lax.stop_gradient(model.embed(wanted))",
        ROUTER,
    ),
    Bug(
        "a router learns where the models agree",
        "models/objectives/router.py",
        "label = (own != wanted).astype(jnp.float32)",
        "label = (own == wanted).astype(jnp.float32)",
        ROUTER,
    ),
    Bug(
        "recall weighs the tokens that do not differ",
        f"{CONTROL}/routing.py",
        "positive_weight * label * log_yes + (1 - label) * log_no",
        "label * log_yes + positive_weight * (1 - label) * log_no",
        STEPS + ROUTER,
    ),
    Bug(
        "the router's features are not brought to one size",
        "models/objectives/router.py",
        "routing.router_features(depth.unit(features), depth.unit(embedded)",
        "routing.router_features(features, embedded",
        ROUTER,
    ),
    Bug(
        "a router moves the small model",
        "models/objectives/router.py",
        "features, taught = (jax.lax.stop_gradient(x) for x in (out.features, forward(teacher, batch).features))",
        "features, taught = out.features, forward(teacher, batch).features",
        ROUTER,
    ),
    Bug(
        "a router reads logits",
        f"{CONTROL}/routing.py",
        "jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), top)",
        "jax.lax.top_k(logits, top)",
        ROUTER,
    ),
    Bug(
        "the small model writes what is critical",
        f"{CONTROL}/guides.py",
        "value = measures[self.measure](here)",
        "value = -measures[self.measure](here)",
        ROUTER,
    ),
    Bug("a role is the next one's", "data/roles.py", "(count - len(KINDS))", "(count - len(KINDS) + 1)", ROLES),
    Bug(
        "tools are trusted as users are",
        "data/roles.py",
        "_OF_MESSAGE.get(role, DATA)",
        "_OF_MESSAGE.get(role, USER)",
        ROLES,
    ),
    Bug(
        "roles are scaled as embeddings are",
        "models/lm.py",
        "x + look_up(self.roles[...], roles, self.spec.dtype)",
        "x + self.spec.embedding_scale * look_up(self.roles[...], roles, self.spec.dtype)",
        ("tests/models/values/model_test.py",),
    ),
    Bug(
        "what is written is data",
        f"{CONTROL}/segments.py",
        "positions < p.prompt[:, None], own, self.count - 1",
        "positions < p.prompt[:, None], own, self.count - 2",
        ROLES,
    ),
    Bug(
        "the first token that is written has its prompt's role",
        f"{CONTROL}/segments.py",
        "positions < p.prompt[:, None]",
        "positions <= p.prompt[:, None]",
        ROLES,
    ),
    Bug(
        "an announced answer is output",
        "data/conversations.py",
        "found.append((len(before), len(after), roles.OUTPUT))",
        "found.append((len(before) - 1, len(after), roles.OUTPUT))",
        ROLES,
    ),
    Bug(
        "a packed token has its neighbour's kind",
        "data/packing.py",
        'return np.take(tokens.kinds, place, mode="clip")',
        'return np.take(tokens.kinds, place + 1, mode="clip")',
        ROLES,
    ),
    Bug(
        "the kind of a hidden message is that of the first",
        "data/conversations.py",
        "        least = max(least, kinds[place])\n",
        "",
        ROLES,
    ),
    Bug(
        "an older config keeps the old name of a control",
        "experiments/settings/history.py",
        "new if name.strip() == old else name",
        "name",
        ("tests/experiments/settings/history_test.py",),
    ),
    Bug(
        "random choices do not count what is saved",
        "experiments/claims/pairs.py",
        'weight * read["large"] + (1 - weight) * read["small"]',
        'weight * read["large"]',
        PAIRS,
    ),
    Bug(
        "a nudge ends where it begins",
        "experiments/claims/pairs.py",
        "need or (inside and not first and not begins)",
        "need",
        PAIRS,
    ),
    Bug(
        "a nudge goes on in the next row",
        "experiments/claims/pairs.py",
        "inside and not first and not begins",
        "inside and not begins",
        PAIRS,
    ),
)
