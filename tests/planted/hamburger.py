"""HAMburger: several tokens in one step of the model."""

from tests.planted import Bug

_TESTS = "tests/models/hamburger_test.py::"
_VALUE = (_TESTS + "test_packed_documents_have_the_value_of_each_in_plain_numpy[confidence]",)
_FIXED = (_TESTS + "test_packed_documents_have_the_value_of_each_in_plain_numpy[fixed]",)
_STEPS = (_TESTS + "test_prefill_and_steps_equal_the_whole",)
_HEAD = (_TESTS + "test_the_stop_head_ends_groups_where_text_is_written_token_by_token",)
_LEARNS = (_TESTS + "test_everything_learns",)
_GROUPS = (_TESTS + "test_groups_are_those_of_a_loop",)
_FLOPS = (_TESTS + "test_flops_agree_with_the_compiler[confidence]",)
_FILE, _PLAIN = "models/hamburger.py", "models/segments/hamburger.py"

BUGS = (
    Bug(
        "hamburger: a step stands in the place of its first token",
        _FILE,
        "place = cuts.at(positions, steps.at)",
        "place = cuts.at(positions, steps.at) - steps.size + 1",
        _VALUE,
    ),
    Bug(
        "hamburger: a merged vector begins one token late",
        _FILE,
        "begin = self.most + steps.at - steps.size + 1",
        "begin = self.most + steps.at - steps.size + 2",
        _VALUE,
    ),
    Bug(
        "hamburger: the micro decoder reads the step that holds the tokens it is to write",
        _FILE,
        "row = steps.newest - (0 if inside else 1)",
        "row = steps.newest - (0 if inside else 0)",
        _VALUE,
    ),
    Bug(
        "hamburger: the micro decoder's output is not normed",
        _FILE,
        "x = self.norm(x[:, F:]).reshape(",
        "x = x[:, F:].reshape(",
        _VALUE,
    ),
    Bug(
        "hamburger: features of the first layers in place of evenly spaced ones",
        _FILE,
        "return tuple(-(-(f + 1) * spec.L // F) - 1 for f in range(F))",
        "return tuple(range(F - 1)) + (spec.L - 1,)",
        _VALUE,
    ),
    Bug(
        "hamburger: the stop head is told of the token that it has read",
        _FILE,
        "pairs, following = _pairs(live, first), found.ends[:, 1:]",
        "pairs, following = _pairs(live, first), found.ends[:, :-1]",
        _VALUE,
    ),
    Bug(
        "hamburger: the stop head's loss has the other sign of its logits",
        _FILE,
        "nats = jnp.where(following, jax.nn.softplus(-wide), jax.nn.softplus(wide))",
        "nats = jnp.where(following, jax.nn.softplus(wide), jax.nn.softplus(-wide))",
        _VALUE,
    ),
    Bug(
        "hamburger: pairs cross documents",
        _FILE,
        "return live[:, :-1] & live[:, 1:] & ~first[:, 1:]",
        "return live[:, :-1] & live[:, 1:]",
        _VALUE,
    ),
    Bug(
        "hamburger: the teacher moves the embedding",
        _FILE,
        "mrt5.rms_norm(jax.lax.stop_gradient(x), 1.0)",
        "mrt5.rms_norm(x, 1.0)",
        _LEARNS,
    ),
    Bug(
        "hamburger: the teacher's loss is left out",
        _FILE,
        ">= bar, weight * nats",
        ">= bar, 0.0 * nats",
        _VALUE,
    ),
    Bug(
        "hamburger: the group that was begun before a pass is read from its second token on",
        _FILE,
        "begin = jnp.concatenate([self.most - found.size[:, :1] + 1, begin], axis=1)",
        "begin = jnp.concatenate([self.most - found.size[:, :1] + 2, begin], axis=1)",
        _STEPS,
    ),
    Bug(
        "hamburger: the features kept between passes are those of the step before the last",
        _FILE,
        '"wires": cuts.at(known, count[:, None])[:, 0],',
        '"wires": cuts.at(known, jnp.maximum(count[:, None] - 1, 0))[:, 0],',
        _STEPS,
    ),
    Bug(
        "hamburger: padding counts among the tokens kept between passes",
        _FILE,
        "jnp.sum(live, axis=1)[:, None] + jnp.arange(self.most)",
        "T + 0 * jnp.sum(live, axis=1)[:, None] + jnp.arange(self.most)",
        _STEPS,
    ),
    Bug(
        "hamburger: a group that has ended goes on in the next pass",
        _FILE,
        "size = jnp.where(jnp.any(live, axis=1) & ends, 0, last(found.size, live, before.size))",
        "size = last(found.size, live, before.size)",
        _STEPS,
    ),
    Bug(
        "hamburger: the stop head goes on where it is to stop",
        _FILE,
        'ending = 1 - jax.nn.sigmoid(stops) < self.spec.options["hamburger"]["stop_confidence"]',
        'ending = jax.nn.sigmoid(stops) < self.spec.options["hamburger"]["stop_confidence"]',
        _HEAD,
    ),
    Bug(
        "hamburger: the stop head decides nothing",
        _FILE,
        'wants = held["stop"][:, None]',
        'wants = wants & held["stop"][:, None]',
        _HEAD,
    ),
    Bug(
        "hamburger: FLOPs of the micro decoder are those of its new tokens alone",
        _FILE,
        "tokens = len(wired(spec)) + most - 1",
        "tokens = most - 1",
        _FLOPS,
    ),
    Bug(
        "hamburger: the mean of a group is over all places",
        _PLAIN,
        "/ number.reshape(-1, 1).astype(flat.dtype)",
        "/ s",
        _VALUE,
    ),
    Bug(
        "hamburger: attention sees places without a token",
        _PLAIN,
        "weights = jax.nn.softmax(jnp.where(present[:, None], scores, -jnp.inf), axis=-1)",
        "weights = jax.nn.softmax(scores, axis=-1)",
        _VALUE,
    ),
    Bug(
        "hamburger: one token is merged, too",
        _PLAIN,
        "return jnp.where((number == 1)[..., None], embedded[..., 0, :], made)",
        "return made",
        _FIXED,
    ),
    Bug(
        "hamburger: groups may be one token longer",
        _PLAIN,
        "(want | (longer >= most))",
        "(want | (longer > most))",
        _GROUPS,
    ),
    Bug(
        "hamburger: a document's first token joins a group",
        _PLAIN,
        "ends = live & (first | (want",
        "ends = live & ((first & want) | (want",
        _GROUPS,
    ),
    Bug(
        "hamburger: groups are not limited",
        _PLAIN,
        "& (counted < 1 + place // least))",
        "& (counted < 1 + place))",
        _GROUPS,
    ),
)
