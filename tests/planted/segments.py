"""Segments of bytes inside a model, and the exact law of bytes."""

from tests.planted import Bug

ENDINGS = ("tests/data/tokenizers/endings_test.py",)
_VALUE = "tests/models/segmented_test.py::test_packed_documents_have_the_value_of_each_in_plain_numpy"
_STEPS = "tests/models/segmented_test.py::test_prefill_and_steps_equal_the_whole"
VALUE, STEPS = (
    {name: (f"{test}[{name}]",) for name in ("stride", "words", "hnet", "entropy")} for test in (_VALUE, _STEPS)
)
_SEGMENTED, _DELETED = "tests/models/segmented_test.py::", "tests/models/deleted_test.py::"
_VALUE_OF_ATTENTION = f"{_VALUE}[words+]"
SOFT = (_DELETED + "test_a_soft_pass_has_the_value_of_plain_numpy",)
LIMIT = (_DELETED + "test_gates_that_are_open_or_shut_make_the_pass_that_trains_the_one_that_is_read",)
CONTROLLER = (_DELETED + "test_the_gate_is_trained_softly_and_its_controller_follows_the_rate",)
ATTENDED = (_VALUE_OF_ATTENTION, "tests/models/scripts_test.py::test_a_softmax_over_bytes_in_parts_is_that_over_all")
EXACT = ("tests/experiments/training/exact_bytes_test.py",)

BUGS = (
    Bug(
        "segments: a delayed token holds the byte that marks it",
        "models/segments/cuts.py",
        "return counted if delayed else counted - marks",
        "return counted - marks",
        VALUE["words"],
    ),
    Bug(
        "segments: pools cross documents",
        "models/segmented.py",
        "member = jnp.where(segment_ids[..., None] == own[:, None], member, 0)",
        "member = jnp.where(segment_ids[..., None] == segment_ids[..., None], member, 0)",
        VALUE["stride"],
    ),
    Bug(
        "segments: a byte reads the token before its newest",
        "models/segments/cuts.py",
        "found = at(known, jnp.minimum(number, tokens.shape[1]))",
        "found = at(known, jnp.minimum(jnp.maximum(number - 1, 0), tokens.shape[1]))",
        VALUE["words"],
    ),
    Bug(
        "segments: the sum of a segment that goes on is lost between passes",
        "models/segments/pools.py",
        '"total": total + jnp.where(goes_on[:, None], held["total"], 0),',
        '"total": total,',
        STEPS["words"],
    ),
    Bug(
        "segments: the moving average goes on over documents",
        "models/segments/cuts.py",
        "keep = jnp.where(first, 0, 1 - share)",
        "keep = jnp.where(first, 1 - share, 1 - share)",
        VALUE["hnet"],
    ),
    Bug(
        "segments: the limit counts from the row's beginning",
        "models/segments/cuts.py",
        "most = jnp.where(live, jnp.where(first, 1, 1 + place // least), _MANY)",
        "most = jnp.where(live, jnp.where(first, 1, 1 + jnp.arange(place.shape[1]) // least), _MANY)",
        ("tests/models/segmented_test.py::test_segments_are_limited_as_one_by_one",),
    ),
    Bug(
        "segments: the cosine reads the byte itself",
        "models/segments/segmenters.py",
        'row = jnp.concatenate([carry["hidden"][:, None].astype(x.dtype), x], axis=1)',
        'row = jnp.concatenate([0 * carry["hidden"][:, None].astype(x.dtype), x], axis=1)',
        STEPS["hnet"],
    ),
    Bug(
        "segments: the backbone's places go on over documents",
        "models/segmented.py",
        "place = cuts.at(seen.place if self.segmenter.of_places else found.number - 1, found.at)",
        "place = jnp.broadcast_to(jnp.arange(found.at.shape[1]), found.at.shape)",
        STEPS["words"],
    ),
    Bug(
        "segments: FLOPs of the backbone for every byte",
        "models/segmented.py",
        'share, found = S / length, {"matmul": 0.0}',
        'share, found = 1.0, {"matmul": 0.0}',
        ("tests/models/segmented_test.py::test_flops_agree_with_the_compiler[words]",),
    ),
    Bug(
        "segments: the entropy is that of the byte behind",
        "models/segments/segmenters.py",
        'H = jnp.where(bytes_.first, 0, moved(carry["next"], following))',
        "H = jnp.where(bytes_.first, 0, following)",
        VALUE["entropy"],
    ),
    Bug(
        "segments: what was read last is not kept",
        "models/segmented.py",
        "jnp.sum(found.held, axis=1)[:, None])[:, 0]",
        "0 * jnp.sum(found.held, axis=1)[:, None])[:, 0]",
        STEPS["words"],
    ),
    Bug(
        "mrt5: gates are not added to the scores",
        "models/segmented.py",
        'shown["key_bias"] = cut.gates if soft else None',
        'shown["key_bias"] = None',
        SOFT,
    ),
    Bug(
        "mrt5: gates are added to the scores of queries",
        "models/mixers/attend.py",
        'given["bias"], axes["bias"] = bias[:, None, None], ("batch", None, None, None)',
        'given["bias"], axes["bias"] = bias[:, None, :, None], ("batch", None, None, None)',
        SOFT,
    ),
    Bug(
        "mrt5: a deleted byte hides those before it",
        "models/segments/segmenters.py",
        "kept=1 - gates / k), carry",
        "kept=gates / k), carry",
        SOFT,
    ),
    Bug(
        "mrt5: a document's first byte may be deleted",
        "models/segments/segmenters.py",
        "gates = jnp.where(bytes_.first, 0, mrt5.gate(wide, k))",
        "gates = mrt5.gate(wide, k)",
        LIMIT,
    ),
    Bug(
        "mrt5: places of the backbone are counted",
        "models/segments/segmenters.py",
        'pool, softens, of_places = "at", True, True',
        'pool, softens, of_places = "at", True, False',
        LIMIT,
    ),
    Bug(
        "mrt5: the controller is told what stays",
        "models/segments/segmenters.py",
        'rate = 1 - report["segments"].value[0]',
        'rate = report["segments"].value[0]',
        CONTROLLER,
    ),
    Bug(
        "mrt5: training reads the pass of evaluation",
        "models/objectives/next_token.py",
        'out = forward(model, batch, **({"soft": True} if getattr(model, "softens", False) else {}))',
        "out = forward(model, batch)",
        (_SEGMENTED + "test_what_decides_the_cuts_learns[mrt5]",),
    ),
    Bug(
        "pools: the weights of what was read before are not made smaller",
        "models/segments/cuts.py",
        'before = jnp.exp(held["peak"] - peak[:, 0])',
        'before = jnp.ones_like(held["peak"])',
        ATTENDED,
    ),
    Bug(
        "pools: the first token forgets the largest score before",
        "models/segments/cuts.py",
        'peak = peak.at[:, 0].max(held["peak"])',
        "peak = peak.at[:, 0].max(LOW)",
        ATTENDED,
    ),
    Bug(
        "pools: scores are not scaled",
        "models/segments/pools.py",
        "heads(query).astype(self.wide)) / self.H**0.5",
        "heads(query).astype(self.wide))",
        ATTENDED,
    ),
    Bug(
        "endings: covers need no valid last token",
        "data/tokenizers/endings.py",
        "kept = [(body, some[[next(valid) for _ in some]]) for body, some in tried]",
        "kept = [(body, some) for body, some in tried]",
        ENDINGS,
    ),
    Bug(
        "endings: a beginning that ends inside of a character has one encoding",
        "data/tokenizers/endings.py",
        "if not unfinished(text):\n            made",
        "if True:\n            made",
        ENDINGS,
    ),
    Bug(
        "endings: nothing is tried behind blanks",
        "data/tokenizers/endings.py",
        "for more in BEHIND if ends_blank(text)",
        "for more in BEHIND if not text",
        ENDINGS,
    ),
    Bug(
        "covers: only the first of what may stand behind a blank is tried",
        "data/tokenizers/covers.py",
        "for more in BEHIND)",
        "for more in BEHIND[:1])",
        ENDINGS,
    ),
    Bug(
        "covers: the cut of an encoding is one token early",
        "data/tokenizers/endings.py",
        "ids[: at.index(end) + 1]",
        "ids[: at.index(end)]",
        ENDINGS,
    ),
    Bug(
        "exact bytes: a short row's own tokens are not counted",
        "experiments/training/exact_bytes.py",
        "own[row + r, :token].sum() + asked[question + q]",
        "asked[question + q]",
        EXACT,
    ),
    Bug(
        "exact bytes: rows go on from the first document's state",
        "experiments/training/exact_bytes.py",
        'state = lanes.take(out.state, arrays["document"])',
        'state = lanes.take(out.state, 0 * arrays["document"])',
        EXACT,
    ),
)
