"""Bench rows of decoding: a token beside the plain decoder's, lanes, what the past costs, the first token."""

import copy
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
from configs import base, transformer
from experiments import program
from experiments.bench import plain, timing
from experiments.bench.comparison import Comparison, Planned
from experiments.bench.training import SHAPES, config, from_plain, program_of
from experiments.generation.decoder import Decoder
from experiments.generation.engine import Engine
from experiments.generation.text import Generator
from experiments.program import sharding
from kernels import masks
from kernels.attention.cached import attend_cache

GREEDY = base.get_config().generate.to_dict() | {"temperature": 0.0}


def planned() -> Iterator[Planned]:
    """All rows of this module that compare candidates."""
    for shape in ("a", "b"):
        for batch in (1, 8):
            yield Planned(f"decode/{shape}/batch{batch}", functools.partial(_decode, shape, batch))
    yield Planned("lanes/a", functools.partial(_lanes, "a"))
    yield Planned("blocks/b", functools.partial(_blocks, "b"))
    yield Planned("first/124m", _first)


def begun(decoder: Decoder, params: Any, tokens: jax.Array, more: int) -> tuple[Any, Any, Any]:
    """(weights, parts, rows) after the prompts `tokens [B, T]`, but for their last tokens; room for `more` tokens."""
    B, T = tokens.shape
    parts = decoder.parts([GREEDY])
    weights = decoder.weights(params, parts)
    text, length = jnp.pad(tokens, ((0, 0), (0, more))), jnp.full((B,), T, jnp.int32)
    given = (text, length, length + more, jnp.zeros((B, 2), jnp.uint32), {})
    return weights, parts, decoder.start(weights, *given, parts=parts, size=T, capacity=T + more)


def _decode(shape: str, batch: int, prompt: int = 64, max_new: int = 128) -> Comparison:
    D, L, N, F, V, _, _ = SHAPES[shape]
    hand = plain.init(jax.random.key(1), V=V, D=D, L=L, F=F)
    params, decoder = from_plain(hand), Decoder(program_of(shape), None)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (batch, prompt)), jnp.int32)

    def tessera() -> Any:
        weights, parts, p = begun(decoder, params, tokens, max_new)
        return decoder.extend(weights, p, max_new, batch + 1, parts=parts).text[:, prompt : prompt + max_new]

    def by_hand() -> Any:
        return plain.decode(hand, tokens, N=N, max_new=max_new)

    def check() -> str:
        same = float(jnp.mean(tessera() == by_hand()))
        # Greedy choices may part after a near-tie; the first tokens must not.
        early = bool(jnp.all(tessera()[:, :8] == by_hand()[:, :8]))
        return "" if early else f"greedy tokens differ from the plain decoder's ({same:.0%} equal)"

    return Comparison(
        name=f"decode/{shape}/batch{batch}",
        candidates={"tessera": tessera, "plain": by_hand},
        baseline="plain",
        check=check,
        work=(batch * max_new, "tokens"),
        rounds=7,
    )


def passes(lengths: Sequence[int], lanes: int) -> dict[str, int]:
    """Passes of the model that texts of these lengths need at least, first come first served.

    "lanes": each takes the lane that is free first. "fixed": batches in their order, each as long as its longest text.
    """
    free = [0] * lanes
    for length in lengths:
        first = free.index(min(free))
        free[first] += length
    fixed = sum(max(lengths[i : i + lanes]) for i in range(0, len(lengths), lanes))
    return {"lanes": max(free), "fixed": fixed}


def endless(shape: str) -> Any:
    """A bench shape's Transformer over bytes, not trained, as `trained.load` returns one; no text ends before its
    length. Its head is as wide as the shape's; ids that are no bytes are never drawn. Beginnings are not kept: benches
    ask for the same prompts again."""
    made_config, tokenizer = config(shape).copy_and_resolve_references(), copy.copy(data.ByteTokenizer())
    made_config.generate.engine.prefix_blocks, tokenizer.eos = 0, -1
    mesh = sharding.make_mesh(made_config, jax.devices()[:1])
    made = program.build(made_config, vocab_size=max(tokenizer.vocab_size, SHAPES[shape][4]), mesh=mesh)
    known = {"config": made_config, "tokenizer": tokenizer, "about": {}, "workdir": None}
    return types.SimpleNamespace(program=made, params=made.init()["params"], **known)


def _lanes(shape: str, count: int = 64, lanes: int = 8, prompt: int = 8) -> Comparison:
    """Requests of 16 to 512 tokens over lanes, and in batches of as many rows that wait for their longest.

    "fixed" are batches in the same engine, whose slots grow with the batch; "generate" is a call a batch, which has
    room for its longest text from the start.
    """
    trained = endless(shape)
    rng = np.random.default_rng(0)
    lengths = rng.integers(16, 513, count).tolist()
    prompts = ["".join(map(chr, rng.integers(97, 123, prompt))) for _ in range(count)]
    engine = Engine(trained, lanes=lanes, capacity=prompt + 1 + 512, temperature=0.0)
    generator = Generator(trained.program, trained.tokenizer)
    least = passes(lengths, lanes)

    def texts(some: slice) -> list[str]:
        asked = zip(prompts[some], lengths[some], strict=True)
        ids = [engine.admit(prompt, number=0, max_tokens=length) for prompt, length in asked]
        found = {result.id: result.text for result in engine.results()}
        return [found[i] for i in ids]

    def over_lanes() -> list[str]:
        return texts(slice(None))

    def in_batches() -> list[str]:
        return [text for i in range(0, count, lanes) for text in texts(slice(i, i + lanes))]

    def by_calls() -> list[str]:
        made = []
        for i in range(0, count, lanes):
            asked = GREEDY | {"max_tokens": max(lengths[i : i + lanes])}
            made += generator(trained.params, prompts[i : i + lanes], asked)
        return made

    return Comparison(
        name=f"lanes/{shape}",
        candidates={"lanes": over_lanes, "fixed": in_batches, "generate": by_calls},
        baseline="fixed",
        check=lambda: "" if over_lanes() == in_batches() else "texts over lanes differ from those in batches",
        work=(sum(lengths), "tokens"),
        counted=("passes", least | {"generate": least["fixed"]}),
        rounds=3,
    )


def _blocks(shape: str, batch: int = 8, slots: int = 512, block: int = 64) -> Comparison:
    """One token's attention in a layer, slots side by side, or gathered from a pool by a table of blocks.

    "moved" is the copy of all slots that rows side by side need when they go to another shape.
    """
    D, _, N, *_ = SHAPES[shape]
    H, count = D // N, slots // block
    shapes = [(batch, 1, N, H), *[(batch, N, slots, H)] * 2]
    q, *cache = (jax.random.normal(jax.random.key(i), size) for i, size in enumerate(shapes))
    table = jax.random.permutation(jax.random.key(3), batch * count).reshape(batch, count)
    cut = lambda x: x.reshape(batch, N, count, block, H).swapaxes(1, 2).reshape(batch * count, N, block, H)  # noqa: E731
    pool = [jnp.zeros_like(cut(x)).at[table.reshape(-1)].set(cut(x)) for x in cache]

    @jax.jit
    def beside(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_cache(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask=masks.Causal())

    @jax.jit
    def by_table(q: jax.Array, table: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        whole = lambda x: x[table].swapaxes(1, 2).reshape(batch, N, slots, H)  # noqa: E731
        return beside(q, whole(k), whole(v))

    moved, rows = jax.jit(lambda k, v, rows: (k[rows], v[rows])), jnp.arange(batch)[::-1]

    def check() -> str:
        far = float(jnp.max(jnp.abs(beside(q, *cache) - by_table(q, table, *pool))))
        return "" if far < 1e-6 else f"the two differ by {far:.1e}"

    return Comparison(
        name=f"blocks/{shape}",
        candidates={
            "beside": lambda: beside(q, *cache),
            "table": lambda: by_table(q, table, *pool),
            "moved": lambda: moved(*cache, rows),
        },
        baseline="beside",
        check=check,
        work=(batch, "tokens"),
        calls=20,
    )


def _first(prompt: int = 512) -> Comparison:
    """One forward pass over a prompt with the logits of its end, and the first token of it as the engine draws it."""
    made_config = transformer.get_config("124m")
    made_config.update({"data": {"source": "random", "vocab_size": 50304}})
    made_config.model.dtype = "float32"
    made = program.build(made_config.lock(), vocab_size=50304, mesh=sharding.make_mesh(made_config, jax.devices()[:1]))
    params, decoder = made.init()["params"], Decoder(made, None)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 50304, (1, prompt)), jnp.int32)

    @jax.jit
    def whole(params: Any, tokens: jax.Array) -> jax.Array:
        model = made.decoder(params)
        features = model(tokens, mask=masks.Causal()).features
        return jnp.argmax(model.logits(features[:, -1]), axis=-1)

    def token() -> jax.Array:
        weights, parts, p = begun(decoder, params, tokens, 64)
        return decoder.extend(weights, p, 1, 2, parts=parts).text[:, prompt]

    forward = functools.partial(whole, params, tokens)
    return Comparison(
        name="first/124m",
        candidates={"first token": token, "forward": forward},
        baseline="forward",
        check=lambda: "" if bool(jnp.all(token() == forward())) else "the first token differs from the forward pass",
        work=(prompt, "tokens"),
        rounds=5,
    )


def past(shape: str = "b", short: int = 1024, slots: int = 1024, tokens: int = 64, batch: int = 4) -> dict[str, float]:
    """What `slots` more cached tokens add to the time of a token, over the time in which their bytes are read.

    Three candidates take turns: rounds over a state of `short` full slots, over one of as many and `slots` more, and
    the sum of as many bytes as these more slots have.
    """
    D, L, _, _, V, _, _ = SHAPES[shape]
    made = program_of(shape)
    params, decoder = made.init()["params"], Decoder(made, None)

    def rounds(held: int) -> Any:
        text = jnp.asarray(np.random.default_rng(0).integers(0, V, (batch, held)), jnp.int32)
        weights, parts, p = begun(decoder, params, text, tokens)
        keep = jax.tree.map(jnp.copy, p)
        return lambda: decoder.extend(weights, jax.tree.map(jnp.copy, keep), tokens, batch + 1, parts=parts).text

    size = 2 * L * D * 4 * batch
    past_ = jnp.ones((slots * size // 4,))
    read = jax.jit(lambda x: jax.lax.fori_loop(0, tokens, lambda i, s: s + jnp.sum(x * s), jnp.float32(1e-9)))
    turns = {"short": rounds(short), "long": rounds(short + slots), "read": lambda: read(past_)}
    timed = timing.interleave(turns, rounds=5)
    grown = timed["long"].median_cpu - timed["short"].median_cpu
    per = 1e3 / tokens
    return {
        "short_ms": timed["short"].median_cpu * per,
        "long_ms": timed["long"].median_cpu * per,
        "read_ms": timed["read"].median_cpu * per,
        "gigabytes_per_second": slots * size * tokens / timed["read"].median / 1e9,
        "times_their_bytes": grown / timed["read"].median_cpu,
    }
