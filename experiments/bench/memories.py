"""Bench rows of `generate.memory`: a decoding step of shape b at long contexts, full cache and policies.

    memory/b/equal    all hold 511 tokens: what a policy costs beside attention to as many
    memory/b/equal8   the same for eight texts at once
    memory/b/8192     a context of 8,192 tokens, of which policies keep or read 512
    memory/b/65536    the same at 65,536

Caches are filled with random keys and values, not by reading. `state bytes` are those that the compiled program takes.
token_select chooses for each token; with `least=0.9`, as published, only where a row's query turned away from the one
that chose. How often that is depends on the queries, which here are those of random weights.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import training
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from models.decoding.rows import single
from models.mixers.memory import Policy
from models.mixers.memory.full import Full
from models.mixers.memory.kept import Kept
from models.mixers.memory.quest import Quest
from models.mixers.memory.selection import quest_pages
from models.mixers.memory.streaming import Streaming
from models.mixers.memory.token_select import TokenSelect
from models.mixers.slots import Slots

BUDGET, TOKENS, ROOM = 512, 8, 64  # tokens that stay, tokens of a call, slots behind the context: for 8 calls
POLICIES = {  # name of a policy, with what it is like here behind it: its options
    "streaming": {"sinks": 4}, "h2o": {"recent": 256}, "a2sf": {"recent": 256}, "keyformer": {"recent": 256},
    "scissorhands": {"recent": 256}, "tova": {}, "snap": {"window": 64}, "pyramid": {"window": 64}, "prefix_kv": {},
    "elastic": {}, "ems": {"recent": 256}, "random": {"recent": 256}, "quest": {},
    "token_select": {"initial": 4, "local": 64, "least": 1.0},
    "token_select least=0.9": {"initial": 4, "local": 64, "least": 0.9},
}  # fmt: skip
CONTEXTS = (8192, 65536)


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    for name, rows in {"memory/b/equal": 1, "memory/b/equal8": 8}.items():
        yield Planned(name, functools.partial(_row, name, BUDGET - 1, BUDGET - 1, rows))
    for context in CONTEXTS:
        name = f"memory/b/{context}"
        yield Planned(name, functools.partial(_row, name, context, BUDGET))


def policies(context: int, budget: int) -> dict[str, Policy]:
    """The full cache and every policy with so many tokens, for a context that is as long or longer."""
    slots, made = context + ROOM, {"full": Policy(slots=context + ROOM)}
    for label, options in POLICIES.items():
        name = label.split()[0]
        share = {"ratio": 1 - budget / slots} if name in ("prefix_kv", "elastic") else {"budget": budget}
        more = {"token_select": {"budget": max(1, budget - 68)}, "quest": {"page": 16}}.get(name, {})
        made[label] = Policy(name, tuple(sorted((options | share | more).items())), slots=slots, drawn=64)
    return made


def filled(memory: Any, context: int, key: jax.Array) -> Any:
    """An empty memory as it is after `context` tokens, with random keys and values."""
    ks = jax.random.split(key)
    k, v = (jax.random.normal(one, memory.k.shape, memory.k.dtype) for one in ks)
    count = jnp.full((memory.k.shape[0],), context, jnp.int32)
    memory = dataclasses.replace(memory, k=k, v=v)
    S = k.shape[2]
    if isinstance(memory, Kept):
        held = min(memory.most, context, memory.rule.budget if hasattr(memory.rule, "budget") else S)
        position = np.full(S, -1, np.int32)
        position[:held] = np.arange(context - held, context)
        extra = memory.extra | ({"norm": jnp.linalg.norm(k, axis=-1)} if "norm" in memory.extra else {})
        position = jnp.broadcast_to(position, memory.position.shape)
        return dataclasses.replace(memory, position=position, length=count, prompt=count, extra=extra)
    if isinstance(memory, Streaming):
        s, ring = memory.rule.sinks, S - 1 - memory.rule.sinks
        position = np.full(S, -1, np.int32)
        for p in (*range(s), *range(max(s, context - ring + 1), context)):
            position[p if p < s else s + (p - s) % ring] = p
        return dataclasses.replace(
            memory, position=jnp.broadcast_to(position, memory.position.shape), length=count, prompt=count
        )
    if isinstance(memory, Quest):
        position = jnp.where(jnp.arange(S) < context, jnp.arange(S), -1).astype(jnp.int32)
        pages = lambda k: quest_pages(k.swapaxes(0, 1), position >= 0, memory.rule.page)  # noqa: E731
        low, high = (x.swapaxes(1, 2) for x in jax.vmap(pages)(k))
        return dataclasses.replace(
            memory, position=jnp.broadcast_to(position, memory.position.shape), low=low, high=high, prompt=count,
        )  # fmt: skip
    if isinstance(memory, TokenSelect):
        return dataclasses.replace(memory, prompt=count)
    assert isinstance(memory, Full)
    return memory


def _row(name: str, context: int, budget: int, rows: int = 1) -> Comparison:
    made = training.program_of("b")
    params = made.init()["params"]
    asked = policies(context, budget)
    length = context + ROOM

    def decode(params: Any, state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        model = made.decoder(params).for_decoding()

        carried, whole = single((state, token))

        def step(_: Any, carried: tuple) -> tuple:
            state, token = whole(carried)
            out = model(token[:, None], mask=masks.Causal(), positions=state["slots"].length[:, None], state=state)
            return single((out.state, jnp.argmax(model.logits(out.features)[:, 0], axis=-1).astype(jnp.int32)))[0]

        return whole(jax.lax.fori_loop(0, TOKENS, step, carried))

    def begin(policy: Policy, params: Any) -> Any:
        state = made.decoder(params).for_decoding().init_state(rows, length, policy)
        keys = iter(jax.random.split(jax.random.key(0), len(state["layers"])))
        layers = tuple(
            {block: filled(memory, context, next(keys)) for block, memory in layer.items()} for layer in state["layers"]
        )
        slots = jnp.where(jnp.arange(length) < context, jnp.arange(length), -1).astype(jnp.int32)
        stand = jnp.broadcast_to(slots, (rows, length))
        return {"slots": Slots(stand, jnp.full((rows,), context, jnp.int32)), "layers": layers}

    token, compiled = jnp.zeros((rows,), jnp.int32), {}
    for policy, each in asked.items():
        state = jax.eval_shape(functools.partial(begin, each), params)
        compiled[policy] = jax.jit(decode, donate_argnums=1).lower(params, state, token).compile()

    def candidate(policy: str) -> Any:
        kept = {}

        def call() -> Any:
            if not kept:
                kept["now"] = jax.jit(functools.partial(begin, asked[policy]))(params), token
            kept["now"] = compiled[policy](params, *kept["now"])
            return kept["now"][1]

        return call

    beside = sum(x.nbytes for x in jax.tree.leaves((params, token)))
    size = {name: run.memory_analysis().argument_size_in_bytes - beside for name, run in compiled.items()}
    return Comparison(
        name=name,
        candidates={policy: candidate(policy) for policy in asked},
        baseline="full",
        work=(TOKENS * rows, "tokens"),
        counted=("state bytes", size),
    )
