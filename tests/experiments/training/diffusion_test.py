"""Diffusion objectives in the loop: the same numbers however a step is cut, learning, filling in, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs import base, diffusion
from configs.knobs import decoding
from experiments import generation, preflight
from experiments.generation import canvas as denoise
from experiments.generation import requests
from experiments.program import inputs
from experiments.training import train
from models.decoding.canvas import caches, guided
from models.decoding.canvas import diffusion as sampling
from tests.experiments import tiny
from tests.experiments.program import program_test
from tests.models import tiny_laws

pytestmark = pytest.mark.usefixtures("one_device")


def flat(changes, prefix=""):
    """Nested changes of a preset as keywords of `program_test.config`: dots are __."""
    pairs = [flat(v, f"{prefix}{k}__") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in changes.items()]
    return {key: value for pair in pairs for key, value in pair.items()}


PRESETS = {name: flat(made.changes) for name, made in diffusion.PRESETS.items()}
FILLED = ("mdlm", "block", "sedd", "any_subset", "insertion", "neodiff")  # What is given stays, to the token.
OTHER = {"any_subset": {"draft": 1}, "neodiff": {"temperature": 0.5}, "insertion": {"temperature": 0.5}}
IN_BLOCKS = {"diffusion": {"method": "threshold", "block": 8, "threshold": 0.01}}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "sedd"])  # uniform is score_entropy, too.
def test_accumulation_of_four_equals_one_batch(preset):
    """On many devices: sharded_test.py."""
    kw = {**PRESETS[preset], "optimizer__eps": 1e-3}
    whole, w = program_test.run(program_test.program(**kw), 2)
    parts, p = program_test.run(program_test.program(**kw, train__accumulation=4), 2)
    program_test.assert_close(whole, parts, 1e-5)
    for a, b in zip(w, p, strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)
    assert w[0]["train/loss"] != w[1]["train/loss"]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "sedd"])
def test_training_learns_and_reports_a_bound(preset, tmp_path):
    config = tiny.config(
        tmp_path, **PRESETS[preset], train__steps=60, optimizer__learning_rate=1e-2, eval__every=0,
        checkpoint__every=0, eval__sample_prompt="ab",
    )  # fmt: skip
    result = train(config, tmp_path / "run", quiet=True)
    # The untrained model has log(259) = 5.6 nats; nine symbols and an end are at most log(10) = 2.3.
    kind = {"any_subset": "=", "neodiff": "~"}.get(preset, "<=")
    assert result["eval/loss"] < 3.0 and result["eval/kind"] == kind and result["eval/bits_per_byte_se"] > 0
    assert (tmp_path / "run" / "samples.jsonl").exists()


@pytest.mark.parametrize("isolate", [True, False])
def test_every_byte_is_scored_once_as_in_the_autoregressive_control(isolate, tmp_path):
    scored = {}
    for objective in ("next_token", *{changes["objective"] for changes in PRESETS.values()}):
        config = tiny.config(tmp_path, objective=objective, eval__rows=0, data__isolate=isolate)
        corpus = inputs.load(config)
        seen = [b["targets"][b["scored"]] for b in inputs.eval_batches(config, corpus)]
        scored[objective] = np.bincount(np.concatenate(seen), minlength=259)
        assert corpus.tokenizer.token_bytes @ scored[objective] == corpus.valid.num_bytes
        np.testing.assert_array_equal(scored[objective], scored["next_token"])


@pytest.fixture(scope="module", params=FILLED)
def filler(request):
    """An untrained model that writes."""
    config = program_test.config(**PRESETS[request.param], generate__max_tokens=10)
    tokenizer = data.ByteTokenizer()
    program = program_test.build(
        config, vocab_size=tokenizer.vocab_size, mesh=program_test.make_mesh(config, jax.devices()[:1])
    )
    return generation.make(program, tokenizer), program.init()["params"]


@pytest.mark.parametrize("other", [False, True], ids=["own sampler", "another"])
def test_what_is_given_stays_and_no_mask_is_left(filler, other):
    made, params = filler
    options = made.program.config.generate.to_dict()
    options["insertion"]["stop"] = "never"  # An untrained model stops where it likes.
    changes = OTHER.get(made.program.config.objective, IN_BLOCKS) if other else {"diffusion": {"steps": 4}}
    for key, value in changes.items():
        options[key] = options[key] | value if isinstance(value, dict) else value
    canvas, segments, starts = made.canvas(["ab cd", "é"], 10, "xyz")
    tokens, (calls, _, _) = made.work(params, canvas, segments, requests.rows(["ab cd", "é"]), options)
    given = canvas != made.program.objective.mask_id
    np.testing.assert_array_equal(tokens[given], canvas[given])
    assert (~given).sum() == 20 and (tokens < 258)[~given].all() and (tokens != 256)[~given].all()
    assert starts == [6, 3] and (calls > 0).all()
    options["diffusion"]["suffix"] = "xyz"
    texts = made(params, ["ab cd", "é"], options, seed=5)
    assert made(params, ["é"], options, seed=5) == texts[1:] and all(text.endswith("xyz") for text in texts)
    assert made(params, ["é", "é"], options, seed=5)[0] == texts[1] != made(params, ["é"], options, seed=6)[0]


def request(canvas, key):
    """Rows without padding, numbered from 0."""
    return denoise.Request(canvas, jnp.ones_like(canvas), key, jnp.arange(len(canvas)))


@pytest.mark.parametrize("block", [0, 1, 2])
def test_filling_by_blocks_has_the_law_of_their_orders(block):
    """A table whose law depends on the order, one token a call: the mean over all orders that respect the blocks."""
    size, length, draws = 2, 4, 60_000
    table = tiny_laws.tab_table(size, length)
    block_of = np.arange(length) // (block or length)
    orders = [o for o in itertools.permutations(range(length)) if (np.diff(block_of[list(o)]) >= 0).all()]
    law = np.mean([tiny_laws.order_law(table, order) for order in orders], axis=0)
    settings = denoise.Settings(sampling.FirstHitting("first_hitting", None), length, length, block)
    canvas, model = jnp.full((draws, length), size), tiny_laws.denoiser(table, jnp.float32)
    fill = lambda key: denoise.fill(model, request(canvas, key), settings, mask_id=size)  # noqa: E731
    tokens, calls = jax.jit(fill)(jax.random.key(0))
    assert (np.asarray(calls) == length).all()
    statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(tokens, size), law)
    assert statistic < limit and tiny_laws.power(size**length, draws) > 0.99


@pytest.mark.parametrize(("by_from", "want"), [
    ("row", [[9, 0, 2, 1, 3], [9, 9, 9, 0, 1]]),  # blocks x., .., . and xx, x., .
    ("prompt", [[9, 1, 0, 3, 2], [9, 9, 9, 1, 0]]),  # x, .., .. and xxx, ..
])  # fmt: skip
def test_blocks_are_counted_from_the_row_or_from_the_prompt(by_from, want):
    """The surest place is the last one, and the token drawn is the number of tokens drawn before: tokens tell the
    order."""
    canvas = jnp.array([[9, 10, 10, 10, 10], [9, 9, 9, 10, 10]])

    def logits(z, t):
        drawn = (canvas == 10).sum(-1) - (z == 10).sum(-1)
        return jax.nn.one_hot(drawn, 10)[:, None] * (1 + jnp.arange(5.0))[None, :, None]

    settings = denoise.Settings(sampling.Confident("max_prob", None, temperature=0.0), 4, 4, 2, by_from)
    tokens, calls = denoise.fill(logits, request(canvas, jax.random.key(0)), settings, mask_id=10)
    assert tokens.tolist() == want and calls.tolist() == [4, 2]


def test_a_block_wider_than_the_answer_has_the_calls_of_the_answer():
    """Four calls for eight masks are four, wherever the blocks lie; shared out where there are many."""
    sampler = sampling.Ancestral("ancestral", None)
    assert [denoise.Settings(sampler, steps, 8).share(size) for steps, size in ((4, 32), (8, 2), (3, 2))] == [4, 2, 1]
    rows = request(jnp.full((2, 8), 3), jax.random.key(0))
    for by in (0, 8, 100):
        settings = denoise.Settings(sampler, 4, 8, by)
        _, calls = denoise.fill(lambda z, t: jnp.zeros((2, 8, 3)), rows, settings, mask_id=3)
        assert calls.tolist() == [4, 4]


def test_names_of_methods_and_options_are_those_of_the_samplers():
    methods = preflight.GENERATION["generate.diffusion.method"]
    assert set(methods) == {"", "guided", *sampling.METHODS}
    assert set(preflight.GENERATION["generate.diffusion.rule"]) == set(guided.RULES)
    assert {*decoding.CACHES, "none"} == {*caches.POLICIES, "adaptive"}
    options = base.get_config().generate.to_dict()
    logits = jnp.zeros((2, 6, 3))
    for method in set(methods) - {"", "guided", *decoding.SCORE_METHODS}:
        options["diffusion"]["method"], options["max_tokens"] = method, 6
        rows = request(jnp.full((2, 6), 3), jax.random.key(0))
        tokens, _ = denoise.fill(lambda z, t: logits, rows, denoise.settings(options), mask_id=3)
        assert (tokens < 3).all(), method


REFUSALS = {
    "block_diffusion.block=5 does not divide data.length=128; use e.g. block_diffusion.block=4": {
        "objective": "block_diffusion", "block_diffusion": {"block": 5},
    },
    "model.attention.window=8 counts tokens of a row": {
        "objective": "block_diffusion", "model": {"attention": {"window": 8}},
    },
    "masked_diffusion.t_min=0.5 lies above masked_diffusion.t_max=0.25": {
        "masked_diffusion": {"t_min": 0.5, "t_max": 0.25},
    },
    "masked_diffusion.times='straitfied' is unknown; did you mean": {"masked_diffusion": {"times": "straitfied"}},
    "masked_diffusion.draws=0 must be at least 1": {"masked_diffusion": {"draws": 0}},
    "generate.diffusion.method='entrpoy' is unknown; did you mean 'entropy'": {
        "generate": {"diffusion": {"method": "entrpoy"}},
    },
    "generate.diffusion.method='euler' follows scores and objective='masked_diffusion' has none": {
        "generate": {"diffusion": {"method": "euler"}},
    },
    "generate.diffusion.method='entropy' fills masks, which score_entropy.graph='uniform' has not": {
        "objective": "score_entropy", "score_entropy": {"graph": "uniform"},
        "generate": {"diffusion": {"method": "entropy"}},
    },
    "score_entropy.schedule='linear' is unknown": {"score_entropy": {"schedule": "linear"}},
    "loss.z_loss=0.1 has no meaning for objective='score_entropy'": {
        "objective": "score_entropy", "loss": {"z_loss": 0.1},
    },
    "model.time_features=8 wants a time, which objective='block_diffusion' does not tell": {
        "objective": "block_diffusion", "model": {"time_features": 8},
    },
    "model.self_condition=True wants an earlier prediction": {"model": {"self_condition": True}},
    "model.time_features=7 must be even": {"model": {"time_features": 7}},
    "generate.diffusion.method='entropy' is not for objective='any_subset'": {
        "objective": "any_subset", "generate": {"diffusion": {"method": "entropy"}},
    },
    "generate.diffusion.cache='free' goes with methods that reveal the surest tokens": {
        "generate": {"diffusion": {"cache": "free"}},
    },
    "generate.diffusion.method='guided' needs an autoregressive run": {"generate": {"diffusion": {"method": "guided"}}},
    "generate.diffusion.cache='dual' keeps what was computed at other times": {
        "model": {"time_features": 8}, "generate": {"diffusion": {"cache": "dual", "method": "margin"}},
    },
    "generate.diffusion.cache='adaptive' fills the whole canvas at once": {
        "generate": {"diffusion": {"cache": "adaptive", "method": "margin", "block": 8}},
    },
    "generate.diffusion.guidance=1.0 does not go with generate.diffusion.cache='dual'": {
        "generate": {"diffusion": {"cache": "dual", "method": "margin", "guidance": 1.0}},
    },
    "any_subset.rate_min=0.9 lies above any_subset.rate_max=0.5": {
        "objective": "any_subset", "any_subset": {"rate_min": 0.9, "rate_max": 0.5},
    },
    "model.attention.window=4 counts tokens of a row, which objective='any_subset' lays out twice": {
        "objective": "any_subset", "model": {"attention": {"window": 4}},
    },
    "data.isolate=True parts a row, which objective='insertion' reads as one string": {"objective": "insertion"},
    "model.time_features=0 does not tell a token its noise": {"objective": "neodiff"},
    "objective='masked_difusion' is unknown; did you mean 'masked_diffusion'": {"objective": "masked_difusion"},
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSALS)
def test_what_cannot_be_is_refused_in_one_sentence(sentence):
    config = diffusion.get_config("mdlm")
    config.update(REFUSALS[sentence])
    with pytest.raises(preflight.ConfigError) as refused:
        preflight.check(config, num_devices=1)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", diffusion.SHAPES)
def test_presets_of_published_size_can_be(shape):
    config = diffusion.get_config(f"block-{shape}")
    preflight.check(config, num_devices=1)
    assert (config.objective, config.data.source, config.model.num_layers) == ("block_diffusion", "tfds", 12)
    with pytest.raises(ValueError, match="shape='lm1' is unknown; did you mean 'lm1b'"):
        diffusion.get_config("mdlm-lm1")


def test_settings_of_generation_are_checked_before_anything_is_drawn():
    options = base.get_config().generate.to_dict()
    options["diffusion"]["grid"] = "cubic"
    with pytest.raises(preflight.ConfigError, match="generate.diffusion.grid='cubic' is unknown; .*linear, cosine"):
        preflight.check_generation(options)
