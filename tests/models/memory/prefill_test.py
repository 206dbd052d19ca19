"""Sparse prefill: lists and outputs are those of the patterns' masks in float64, row by row; as an option of text."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import data
from configs import transformer
from experiments import preflight
from experiments.generation import memories, patterns
from experiments.generation.engine import Engine
from experiments.generation.serving.cached import refusal
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError
from kernels import masks
from kernels.attention import patterns as plain
from kernels.attention import sparse
from models.mixers import prefill
from tests.experiments.generation.generate_test import OPTIONS, PROMPTS, made
from tests.experiments.generation.memories_test import BYTES, CUT, T, batches
from tests.models.decoding import stream_test

ROWS = (150, 101, 40, 1)  # tokens of four rows in one batch
SIZE, N, K, H = 150, 4, 2, 8
PATTERNS = (
    sparse.Pattern("a_shape", 3, 20), sparse.Pattern("vertical_slash", 40, 55), sparse.Pattern("block_sparse", 2, 16),
    sparse.Pattern("vertical_slash", 30, 60),
)  # fmt: skip


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(4, SIZE, N, H)), *(rng.normal(size=(4, SIZE, K, H)) for _ in range(2))


def seen(q, k, block):
    """bool `[N, n, n]` of one row alone, head by head: what `patterns` says, slashes widened to tiles."""
    n, made = len(q), []
    for head, (kind, first, second) in enumerate(PATTERNS):
        mask = plain.pattern_mask(q, k, kind, first, second)[head] if kind != "vertical_slash" else None
        if mask is None:
            columns, distances = plain.vertical_slash(plain.last_rows(q, k), first, second)
            mask = plain.expanded(plain.vertical_slash_blocks(distances, n, block), n, block)[head]
            column = np.isin(np.arange(n), columns[head])
            mask = np.asarray(mask) | (column & (np.arange(n) <= np.arange(n)[:, None]))
        made.append(np.asarray(mask))
    return np.stack(made)


@functools.cache
def attended(**options):
    heads, length = sparse.Heads.of(PATTERNS, SIZE), jnp.asarray(ROWS)
    assert heads.block == 16
    sinks = {"sinks": jnp.asarray([0.5, -1.0, 2.0, 0.0])} if options.pop("sunk", False) else {}
    run = lambda q, k, v: sparse.sparse_attention(q, k, v, heads, length=length, **sinks, **options)  # noqa: E731
    return np.asarray(jax.jit(run)(*drawn()))


@pytest.mark.usefixtures("x64")
def test_outputs_are_dense_attention_within_what_each_head_sees():
    out = attended()
    for row, n in enumerate(ROWS):
        q, k, v = (x[row, :n] for x in drawn())
        mask = seen(q, k, 16)
        want = plain.masked_attention(q, k, v, mask)
        np.testing.assert_allclose(out[row, :n], want, atol=1e-13)
        assert (out[row, n:] == 0).all()
        if n > 60:  # Something is left out, of every head.
            assert (mask.sum((1, 2)) < n * (n + 1) / 2).all()


@pytest.mark.usefixtures("x64")
def test_caps_virtual_keys_and_windows_are_those_of_attention():
    """As `attention` with the mask as an array."""
    window = masks.Causal() & masks.Window(30, 30)
    out = attended(softcap=3.0, sunk=True, mask=window)
    q, k, v = (x[1, : ROWS[1]] for x in drawn())
    mask = seen(q, k, 16) & np.asarray(window.dense(ROWS[1], ROWS[1]))
    x = np.einsum("tnh,snh->nts", q, np.repeat(k, 2, axis=1)) / np.sqrt(H)
    e = np.where(mask, np.exp(3 * np.tanh(x / 3)), 0)
    total = e.sum(-1, keepdims=True) + np.exp(np.array([0.5, -1.0, 2.0, 0.0]))[:, None, None]
    want = np.einsum("nts,snh->tnh", e / total, np.repeat(v, 2, axis=1))
    np.testing.assert_allclose(out[1, : ROWS[1]], want, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_a_row_is_the_same_bits_whatever_the_others_hold():
    q, k, v = drawn()
    heads = sparse.Heads.of(PATTERNS, SIZE)
    run = jax.jit(lambda q, k, v, length: sparse.sparse_attention(q, k, v, heads, length=length))
    first = run(q, k, v, jnp.asarray(ROWS))
    others = [np.concatenate([x[:1], np.flip(x[1:], axis=1)]) for x in (q, k, v)]
    np.testing.assert_array_equal(first[0], run(*others, jnp.asarray([150, 7, 150, 99]))[0])


@pytest.mark.usefixtures("x64")
def test_lists_that_hold_everything_are_dense_attention():
    """Although no shortcut is taken: all tiles are walked, and all columns are found in them."""
    q, k, v = drawn(1)
    want = plain.masked_attention(q[0], k[0], v[0], np.tril(np.ones((SIZE, SIZE), bool))[None])
    for pattern in (("vertical_slash", SIZE, 1), ("vertical_slash", 1, SIZE), ("block_sparse", 10, 16)):
        assert sparse.Pattern(*pattern).covers(SIZE) and not sparse.Pattern(*pattern).covers(SIZE * 2)
        heads = sparse.Heads.of([sparse.Pattern(*pattern)] * N, SIZE)
        out = jax.jit(lambda q, k, v, heads=heads: sparse.sparse_attention(q, k, v, heads, length=jnp.asarray([SIZE])))
        np.testing.assert_allclose(out(q[:1], k[:1], v[:1])[0], want, atol=1e-13)
    assert sparse.Pattern("a_shape", 50, 100).covers(150) and not sparse.Pattern("a_shape", 50, 99).covers(150)


@pytest.mark.usefixtures("x64")
def test_lists_and_pairs_are_counted_one_by_one():
    q, k, _ = drawn()
    heads = sparse.Heads.of(PATTERNS, SIZE)
    lists = jax.jit(lambda q, k: sparse.find(q, k, heads, jnp.asarray(ROWS)))(q, k)
    counted = np.asarray(sparse.pairs(lists, heads, SIZE))[0]
    rows = plain.last_rows(q[0], k[0])
    columns, distances = plain.vertical_slash(rows, 40, 55)
    assert np.asarray(lists.columns)[0, 1].tolist() == np.asarray(columns[1]).tolist()
    for head in (1, 3):
        c, d = (columns, distances) if head == 1 else plain.vertical_slash(rows, 30, 60)
        want = 0
        for a in range(10):  # blocks of 16 queries
            tiles = {
                b for b in range(a + 1) if any((a - b) * 16 - 15 <= x <= (a - b) * 16 + 15 for x in np.asarray(d[head]))
            }
            assert tiles == {int(x) for x in lists.tiles[0, head, a] if x < 10}
            single = [x for x in np.asarray(c[head]) if x // 16 < a]  # gathered, whether a tile has them or not
            want += 256 * len(tiles) + len(single) * min(16, SIZE - a * 16)
        assert counted[head] == want
    q, k = q[1, :101], k[1, :101]
    assert (
        np.asarray(lists.columns)[1, 3, :30].tolist()
        == np.asarray(plain.vertical_slash(plain.last_rows(q, k), 30, 60)[0][3]).tolist()
    )


def test_patterns_are_written_and_read():
    made = prefill.parsed("a_shape:4:32, vertical_slash:30:50; block_sparse:2:16")
    first = (sparse.Pattern("a_shape", 4, 32), sparse.Pattern("vertical_slash", 30, 50))
    assert made.layers == (first, (sparse.Pattern("block_sparse", 2, 16),))
    assert made.by_layer([2, 0, 3]) == (first, (), made.layers[1] * 3)
    assert prefill.parsed("a_shape:1:2").by_layer([2, 1]) == (
        (sparse.Pattern("a_shape", 1, 2),) * 2,
        made.layers[0][:0] + (sparse.Pattern("a_shape", 1, 2),),
    )
    found = {"candidates": [["a_shape", 4, 32], ["vertical_slash", 30, 50]], "best": [[1, 0], [0, 0]]}
    assert prefill.parsed(prefill.written(found)).layers == (first[::-1], (first[0],) * 2)
    for text in ("a_shape:4", "b_shape:1:2", "a_shape:0:2", "", "a_shape:1:2,"):
        with pytest.raises(ValueError, match="use e.g. 'vertical_slash:100:800'"):
            prefill.parsed(text)
    assert list(made.problems([2, 2, 2])) == [
        "generate.minference.patterns is of 2 layers, and 3 have attention; use one for all."
    ]
    assert "has 2 heads in layer 0 of 3" in next(made.problems([3, 3]))
    other = prefill.parsed("block_sparse:2:16,block_sparse:2:8")
    assert "blocks of 8 and 16" in next(other.problems([2]))


def test_a_model_reads_its_prompt_within_its_patterns():
    """A-shape of all heads is the whole forward pass under a window with sinks; padded rows of unlike lengths."""
    graphdef, params = stream_test.model("gqa")
    text, length = jnp.asarray(stream_test.prompts()), jnp.asarray([32, 20, 9])
    at = jnp.arange(32)

    @jax.jit
    def read(params, text):
        model = nnx.merge(graphdef, params).for_decoding()
        position = jnp.where(at < length[:, None], at, -1)
        given = {"mask": masks.Causal(), "positions": position, "fresh": True}
        narrow, wide = (prefill.parsed(f"a_shape:2:{window}") for window in (9, 40))
        run = lambda **more: model(text, state=model.init_state(3, 40), **given, **more)  # noqa: E731
        return run(prefill=narrow), run(prefill=wide), run()

    narrow, wide, dense = read(params, text)
    for a, b in zip(*map(jax.tree.leaves, ((wide.features, wide.state), (dense.features, dense.state))), strict=True):
        np.testing.assert_array_equal(a, b)
    rule = masks.Causal() & (masks.Window(8, 8) | masks.Sinks(2))
    want = nnx.merge(graphdef, params)(text, mask=rule).features
    for row, n in enumerate(length):
        np.testing.assert_allclose(narrow.features[row, :n], want[row, :n], atol=2e-5)  # float32 sums of width 32
        assert np.abs(narrow.features[row, :n] - dense.features[row, :n]).max() > 1e-2 or n < 12


def test_each_layer_reads_within_its_own_patterns():
    """The second layer's keys are made of what the first one read, and of nothing that it reads itself."""
    graphdef, params = stream_test.model("gqa")
    text = jnp.asarray(stream_test.prompts())[:1]

    @jax.jit
    def read(params):
        model = nnx.merge(graphdef, params).for_decoding()
        layers = len(model.stack.periods)
        wide, narrow = "a_shape:1:40", "a_shape:1:3"
        made = []
        for narrowed in range(-1, 2):
            words = "; ".join(narrow if i == narrowed else wide for i in range(layers))
            given = {"mask": masks.Causal(), "positions": jnp.arange(32)[None], "fresh": True}
            out = model(text, state=model.init_state(1, 40), prefill=prefill.parsed(words), **given)
            made.append((out.features, [jax.tree.leaves(layer) for layer in out.state["layers"]]))
        return made

    (dense, wide), (first, changed), (second, same) = read(params)
    assert len(wide) > 1 and np.abs(dense - first).max() > 1e-3 and np.abs(dense - second).max() > 1e-3
    for a, c in zip(wide[0] + wide[1], same[0] + same[1], strict=True):
        np.testing.assert_array_equal(a, c)
    assert all((a == b).all() for a, b in zip(wide[0], changed[0], strict=True))
    assert any((a != b).any() for a, b in zip(wide[1], changed[1], strict=True))


SPARSE = {"prefill": "minference", "minference": {"patterns": "a_shape:1:5, vertical_slash:30:50"}}
LONG = "".join(chr(97 + i * i % 23) for i in range(150))


@functools.cache
def generator(tensor):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.model.init, config.model.init_std, config.mesh.data, config.mesh.tensor = "fan_in", 0.5, 1, tensor
    config.model.vocab_multiple = 2
    ready = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:tensor]))
    return Generator(ready, data.ByteTokenizer()), ready.init()["params"]


def test_text_behind_a_sparse_prompt_is_the_same_alone_in_a_batch_and_on_two_devices():
    options = OPTIONS | SPARSE | {"temperature": 0.0, "max_tokens": 12}
    maker, params = generator(1)
    both = maker(params, [LONG, PROMPTS[1]], options, seed=5)
    assert both == [maker(params, [prompt], options, seed=5)[0] for prompt in (LONG, PROMPTS[1])]
    other, params = generator(2)
    assert other(params, [LONG, PROMPTS[1]], options, seed=5) == both
    dense = maker(generator(1)[1], [LONG], OPTIONS | {"temperature": 0.0, "max_tokens": 12}, seed=5)
    covered = options | {"minference": {"patterns": "vertical_slash:1000:6096"}}
    assert maker(generator(1)[1], [LONG], covered, seed=5) == dense != both[:1]


def test_an_engine_reads_sparse_prompts_in_one_pass():
    """Whatever its pieces are, and although two prompts begin alike."""
    maker, params = generator(1)
    settings = OPTIONS | SPARSE | {"temperature": 0.0, "max_tokens": 8}
    prompts = [LONG, LONG + "a", PROMPTS[1]]
    config = maker.program.config.copy_and_resolve_references().unlock()
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    config.generate.update({key: settings[key] for key in ("prefill", "minference")})
    engine = Engine(trained, lanes=2, capacity=192, chunk=16)
    found = engine.generate(prompts, seed=5, max_tokens=8, temperature=0.0)
    assert found == [maker(params, [prompt], settings, seed=5)[0] for prompt in prompts]


def test_an_evaluation_says_what_a_sparse_prompt_loses(tmp_path):
    program, params = made()
    rows = lambda: memories.Rows(program, params, batches(), BYTES, CUT, timed=False)  # noqa: E731
    whole, narrow, again = (
        memories.evaluate(
            rows(), OPTIONS | {"prefill": "minference", "minference": {"patterns": text}}, folder=tmp_path
        )
        for text in ("vertical_slash:1000:6096", "a_shape:1:2", "a_shape:1:2")
    )
    assert whole["memory/bits_per_byte"] == pytest.approx(whole["memory/full_bits_per_byte"], abs=1e-4)
    assert abs(narrow["memory/bits_per_byte"] - narrow["memory/full_bits_per_byte"]) > 1e-3
    assert again == narrow and len(list(tmp_path.glob("*.jsonl"))) == 2
    assert T > CUT


def test_what_cannot_be_is_told_in_a_sentence(tmp_path):
    def told(**options):
        return " ".join(preflight.memory_problems(OPTIONS | SPARSE | options, "attention"))

    assert told() == ""
    assert "does not form what generate.memory='h2o' looks at" in told(memory="h2o")
    assert "'a_shape' is no pattern" in told(minference={"patterns": "a_shape"})
    assert "is of attention, and model.mixer='gated_delta' has none; use generate.prefill='dense'." in " ".join(
        preflight.memory_problems(OPTIONS | SPARSE, "gated_delta")
    )
    maker, params = generator(1)
    for text, says in (
        ("a_shape:1:2,a_shape:1:2,a_shape:1:3", "has 3 heads"),
        ("nowhere.json", "is no file of a search"),
    ):
        with pytest.raises(ConfigError, match=says):
            maker(params, ["a"], OPTIONS | SPARSE | {"minference": {"patterns": text}})
    assert "a cache of beginnings goes with generate.prefill='dense'" in refusal(OPTIONS | SPARSE) and not refusal(
        OPTIONS
    )
    path = tmp_path / "patterns.json"
    path.write_text('{"patterns": "a_shape:1:2"}')
    found = patterns.resolved(OPTIONS | SPARSE | {"minference": {"patterns": str(path)}})
    assert found["minference"] == {"patterns": "a_shape:1:2"}
