"""The memories of the engine are `replay` at every step: kept tokens, scores and outputs of ragged rows in float64.

`replay` itself is held to lists that really drop tokens (replay_test.py). Tolerance: as there, 1e-11.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models import rope
from models.mixers import attend
from models.mixers.attend import recall
from models.mixers.context import Context
from models.mixers.memory import Policy, quest
from models.mixers.memory.replay import replay
from models.mixers.memory.shadow import Shadow
from models.mixers.slots import Slots
from models.partition import Partition
from models.rope_scaling import KINDS, Scaling

N, K, H, THETA = 4, 2, 8, 50.0
PROMPT, T = (16, 11, 14), (30, 27, 21)  # of three rows in one batch
SIZE, LONGEST = 18, 32

CASES = {
    "h2o": ("h2o", {}),
    "h2o-share": ("h2o", {"budget": 0.5, "recent": 0.2}),
    "h2o-roomy": ("h2o", {"budget": 20}),
    "h2o-sinks": ("h2o", {"sinks": 2}),
    "h2o-released": ("h2o", {"released": True}),
    "a2sf": ("a2sf", {"alpha": 0.7}),
    "a2sf-last": ("a2sf", {"alpha": 0.0}),
    "a2sf-released": ("a2sf", {"alpha": 0.7, "released": True}),
    "keyformer": ("keyformer", {"seed": 5, "steps": 9}),
    "keyformer-frozen": ("keyformer", {"frozen_keys": True, "steps": 9}),
    "keyformer-plain": ("keyformer", {"noise": False, "end": 3.0, "steps": 9}),
    "scissorhands": ("scissorhands", {"window": 4}),
    "scissorhands-bulk": ("scissorhands", {"window": 40, "drop": 3}),
    "tova": ("tova", {"recent": 0}),
    "random": ("random", {"seed": 3}),
    "snap": ("snap", {"window": 3}),
    "snap-max": ("snap", {"window": 4, "kernel": 3, "pooling": "max"}),
    "pyramid": ("pyramid", {"window": 3, "beta": 20}),
    "streaming": ("streaming", {"sinks": 2}),
    "streaming-before": ("streaming", {"sinks": 1, "evict": "before"}),
    "streaming-share": ("streaming", {"sinks": 1, "budget": 0.5}),
    "prefix_kv": ("prefix_kv", {"sinks": 2, "distance": -3}),
    "prefix_kv-far": ("prefix_kv", {"sinks": 2, "distance": 20}),
    "prefix_kv-middle": ("prefix_kv", {"ratio": 0.25, "sinks": 1}),
    "elastic": ("elastic", {"sinks": 2, "distance": -3}),
    "elastic-values": ("elastic", {"sinks": 2, "distance": -3, "values_only": True}),
    "elastic-released": ("elastic", {"sinks": 2, "distance": -3, "released": True, "ratio": 0.25}),
    "ems": ("ems", {"window": 3, "least": 0.1}),
    "ems-strict": ("ems", {"window": 3, "least": 0.99}),
}
OWN_BUDGET = {"prefix_kv", "elastic"}
NO_RECENT = OWN_BUDGET | {"snap", "pyramid", "streaming"}
SELECTIONS = {
    "token_select": ("token_select", {"budget": 4, "initial": 2, "local": 3}),
    "token_select-released": (
        "token_select", {"budget": 4, "initial": 2, "local": 3, "released": True, "smooth": 3, "narrow": True},
    ),
    "token_select-again": ("token_select", {"budget": 4, "initial": 2, "local": 3, "least": 0.5}),
    "token_select-roomy again": ("token_select", {"budget": 12, "initial": 2, "local": 3, "least": 0.5}),
    "token_select-share again": ("token_select", {"budget": 0.3, "initial": 1, "local": 2, "least": 0.5}),
    "token_select-share": ("token_select", {"budget": 0.3, "initial": 1, "local": 2}),
    "token_select-most": ("token_select", {"budget": 18, "initial": 2, "local": 3}),
    "token_select-most of a share": ("token_select", {"budget": 0.7, "initial": 1, "local": 2, "smooth": 3}),
    "quest": ("quest", {"budget": 6, "page": 3, "least": 1}),
    "quest-least": ("quest", {"budget": 6, "page": 3, "least": 4}),
    "quest-half": ("quest", {"budget": 24, "page": 2, "least": 1}),
    "quest-two thirds": ("quest", {"budget": 0.8, "page": 2, "least": 1}),
    "quest-share": ("quest", {"budget": 0.5, "page": 3, "least": 1}),
}  # fmt: skip


def options_of(policy, options):
    base = {} if policy in OWN_BUDGET else {"budget": 8}
    return base | ({} if policy in NO_RECENT else {"recent": 3}) | options


@functools.cache
def streams(seed=0, alike=False):
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=(3, LONGEST, n, H))  # noqa: E731
    q, k, v = 2 * draw(N), draw(K), draw(K)
    return (q + alike * 3 * q[:, :1], k, v)


def run(
    policy, options, *, sizes=(SIZE,), rows=(0, 1, 2), layer=0, layers=1, seed=0, alike=False, watch=False, steady=True
):
    """Outputs `[R, B, N, H]`, and the memory and what was seen after each pass; the prompt's last output first."""
    q, k, v = (jnp.asarray(x)[np.array(rows)] for x in streams(seed, alike))
    prompt, total = (jnp.asarray(x)[np.array(rows)] for x in (PROMPT, T))
    made = Policy(policy, tuple(sorted(options.items())), slots=LONGEST + 8, layer=layer, layers=layers, drawn=16)
    rotate = functools.partial(rope.rotate, theta=THETA)
    B = len(rows)

    def step(carry, at, end, fresh=False):
        memory, slots = carry
        position = jnp.where(at < end[:, None], at, -1)
        take = lambda x: jnp.take_along_axis(x, jnp.minimum(at, LONGEST - 1)[..., None, None], axis=1)  # noqa: E731
        context = Context(position, None, masks.Causal(), slots.append(position), slots.length, fresh=fresh)
        out, memory = recall(
            Partition(), take(q), take(k), take(v), context, context.mask, memory, rotate=rotate, steady=steady
        )  # fmt: skip
        return (memory, context.slots), out

    @jax.jit
    def go():
        memory = made.empty(B, LONGEST, N=N, K=K, H=H, dtype=q.dtype)
        memory = Shadow.of(memory, LONGEST + 8) if watch else memory
        carry, begun = (memory, Slots.empty(B, LONGEST + 8)), 0
        for i, size in enumerate(sizes):
            at = begun + jnp.broadcast_to(jnp.arange(size), (B, size))
            carry, out = step(carry, at, prompt, fresh=i == 0)
            begun += size
        first = jnp.take_along_axis(out, (prompt - 1 - begun + sizes[-1])[:, None, None, None], axis=1)[:, 0]

        def one(carry, i):
            carry, out = step(carry, (prompt + i)[:, None], total)
            return carry, (carry[0], out[:, 0])

        _, (memories, outs) = jax.lax.scan(one, carry, jnp.arange(max(T) - min(PROMPT)))
        join = lambda a, b: jnp.concatenate([a[None], b])  # noqa: E731
        return jax.tree.map(join, (carry[0], first), (memories, outs))

    return jax.tree.map(np.asarray, go())


def tokens(memory, record, row, head):
    """{position: score} of what a row's key head holds."""
    position = memory.position[record, row]
    position = position if position.ndim == 1 else position[min(head, len(position) - 1)]
    score = getattr(memory, "score", None)
    score = position[None] if score is None else score[record, row]
    score = score[min(head, len(score) - 1)]
    return {int(p): float(s) for p, s in zip(position, score, strict=True) if p >= 0}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_a_memory_is_replay_at_every_step_of_ragged_rows(name):
    policy, options = CASES[name]
    options = options_of(policy, options)
    memory, out = run(policy, options)
    if policy == "pyramid":
        options = options | {"layer": 0, "layers": 1}
    for row in range(3):
        q, k, v = (x[row, : T[row]] for x in streams())
        want = replay(policy, q, k, v, prompt=PROMPT[row], theta=THETA, **options)
        for record in range(T[row] - PROMPT[row] + 1):
            np.testing.assert_allclose(out[record, row], want.outputs[record], atol=1e-11, err_msg=f"{row} {record}")
            for head in range(K):
                held = tokens(memory, record, row, head)
                positions = want.kept[record, head]
                kept = dict(zip(positions.tolist(), want.scores[record, head], strict=True))
                kept.pop(-1, None)
                length = PROMPT[row] + record
                if name == "h2o-released" and length > options["budget"]:  # The token that is out of sight is held.
                    held.pop(length - options["recent"])
                assert sorted(held) == sorted(kept), (row, record, head)
                if policy != "streaming":
                    np.testing.assert_allclose([held[p] for p in kept], list(kept.values()), atol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("streaming")])
@pytest.mark.parametrize("sizes", [(SIZE,), (5, 4, 9)])
def test_keys_that_keep_their_turns_give_what_keys_that_are_rotated_anew_do(name, sizes):
    """The first form is that of the test above; the second is for rotary positions whose turns do not add up."""
    options = options_of(*CASES[name])
    (memory, kept), (other, anew) = (run("streaming", options, sizes=sizes, steady=steady) for steady in (True, False))
    np.testing.assert_allclose(kept, anew, atol=1e-11)
    np.testing.assert_array_equal(memory.position, other.position)
    assert np.abs(memory.k[-1] - other.k[-1]).max() > 0.1  # What is stored differs.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("budget", [4, 12])
@pytest.mark.parametrize("sizes", [(SIZE,), (5, 4, 9)])
def test_copies_of_what_was_chosen_give_what_keys_that_are_rotated_anew_do(budget, sizes):
    """As above; some choices are used again, and some are not."""
    options = {"budget": budget, "initial": 2, "local": 3, "least": 0.93}
    (memory, kept), (other, anew) = (
        run("token_select", options, sizes=sizes, seed=1, alike=True, steady=steady) for steady in (True, False)
    )
    for row in range(3):  # Behind its end a row's outputs are of nothing.
        last = T[row] - PROMPT[row] + 1
        np.testing.assert_allclose(kept[:last, row], anew[:last, row], atol=1e-11)
    np.testing.assert_array_equal(memory.chosen, other.chosen)
    assert memory.near.built[-1].all() and not other.near.built.any()
    changed = (memory.chosen[2:] != memory.chosen[1:-1]).any(-1)
    assert changed.any() and not changed.all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("budget", [4, 24])
def test_copies_of_what_was_chosen_are_made_anew_behind_a_piece(budget):
    """Steps, a piece of more of the text, steps: the copies of before lack the piece, whether all is read or a part.

    Row 1 has no token in that piece. Any choice may be used again, so that nothing else makes the copies anew.
    """
    q, k, v = (jnp.asarray(x[:2]) for x in streams(1, True))
    options = (("budget", budget), ("initial", 2), ("least", -1.0), ("local", 3))
    made = Policy("token_select", options, slots=LONGEST + 8)
    rotate = functools.partial(rope.rotate, theta=THETA)
    passes = [(8, 8), *[(1, 1)] * 3, (6, 0), *[(1, 1)] * 4]

    def read(steady):
        memory, slots = made.empty(2, LONGEST, N=N, K=K, H=H, dtype=q.dtype), Slots.empty(2, LONGEST + 8)
        outs, begun = [], np.zeros(2, int)
        step = jax.jit(lambda memory, q, k, v, context: recall(
            Partition(), q, k, v, context, context.mask, memory, rotate=rotate, steady=steady
        ))  # fmt: skip
        for i, sizes in enumerate(passes):
            at = begun[:, None] + np.arange(max(sizes))
            position = jnp.asarray(np.where(np.arange(max(sizes)) < np.array(sizes)[:, None], at, -1))
            take = lambda x, at=at: jnp.take_along_axis(x, jnp.asarray(at)[..., None, None], axis=1)  # noqa: E731
            start, slots = slots.length, slots.append(position)
            context = Context(position, None, masks.Causal(), slots, start, fresh=i == 0)
            out, memory = step(memory, take(q), take(k), take(v), context)
            begun += np.array(sizes)
            outs.append(np.where(np.asarray(position)[..., None, None] >= 0, out, 0)[:, -1])
        return np.stack(outs), memory.near.built

    (kept, built), (anew, _) = map(read, (True, False))
    np.testing.assert_allclose(kept, anew, atol=1e-11)
    assert built.all() and np.abs(kept[5] - kept[6]).max() > 1e-3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS[1:])
def test_turns_add_up_where_a_scaling_is_called_steady(kind):
    options = {
        "kind": kind, "factor": 4.0, "original": 16, "length": 0, "attention_factor": 0.0, "low": 1.0, "high": 4.0,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "mscale": 0.0, "mscale_all_dim": 0.0,
        "short_factors": ("1", "2", "3", "4"), "long_factors": ("2", "3", "4", "5"),
    }  # fmt: skip
    scaling = Scaling.of(options)
    turn = lambda x, at: rope.rotate(x, jnp.asarray([[at]]), theta=THETA, scaling=scaling)  # noqa: E731
    x = jnp.asarray(streams()[0][:1, :1])
    assert np.allclose(turn(turn(x, 30), 40), turn(x, 70), atol=1e-12) == scaling.steady


LONG = ("h2o", "a2sf", "keyformer", "keyformer-plain", "scissorhands", "tova", "snap", "prefix_kv", "elastic", "ems")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LONG)
def test_a_long_prompt_is_read_by_sums(name, monkeypatch):
    """The same, where prompts are so long that the kernel of column sums takes the place of all weights."""
    monkeypatch.setattr(attend, "LONG", 2)
    test_a_memory_is_replay_at_every_step_of_ragged_rows(name)


@pytest.mark.usefixtures("x64")
def test_many_pages_are_sorted_and_few_compared(monkeypatch):
    monkeypatch.setattr(quest, "FEW", 4)
    test_a_selection_is_replay_at_every_step_of_ragged_rows("quest-half")
    bound = jnp.asarray([[[1.0, 3, 3, 3, -jnp.inf, 2, 0], [2.0, 2, 2, 2, 2, 2, 2]]])
    sort = np.asarray(quest._best(bound, jnp.asarray([2])))
    monkeypatch.setattr(quest, "FEW", 7)
    np.testing.assert_array_equal(sort, quest._best(bound, jnp.asarray([2])))
    assert sort.tolist() == [[[False, False, True, True, False, False, False], [False] * 5 + [True] * 2]]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_replay_at_every_step_of_ragged_rows(name):
    policy, options = SELECTIONS[name]
    alike = name.endswith("again")
    _, out = run(policy, options, seed=1, alike=alike)
    for row in range(3):
        q, k, v = (x[row, : T[row]] for x in streams(1, alike))
        want = replay(policy, q, k, v, prompt=PROMPT[row], theta=THETA, **options)
        for record in range(T[row] - PROMPT[row] + 1):
            np.testing.assert_allclose(out[record, row], want.outputs[record], atol=1e-11, err_msg=f"{row} {record}")


def in_pieces(q, k, v, sizes, total, budget, recent):
    """Kept positions by key head and outputs after each pass of H2O in numpy: pieces of a prompt, then single tokens.

    q [T, N, H] and k [T, K, H] are rotated. Each pass attends to what the passes before it left, and to itself.
    """
    G, held, score, records, at = N // K, [[] for _ in range(K)], [{} for _ in range(K)], [], 0
    for size in [*sizes, *[1] * (total - sum(sizes))]:
        new, out = list(range(at, at + size)), np.zeros((size, N, H))
        for h in range(K):
            for n in range(h * G, (h + 1) * G):
                for t in new:
                    seen = [*held[h], *[j for j in new if j <= t]]
                    x = np.array([q[t, n] @ k[j, h] for j in seen]) / np.sqrt(H)
                    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
                    out[t - at, n] = sum(w * v[j, h] for w, j in zip(p, seen, strict=True))
                    for w, j in zip(p, seen, strict=True):
                        score[h][j] = score[h].get(j, 0.0) + w
            all_of_them = held[h] + new
            near = [j for j in all_of_them if j > new[-1] - recent]
            rest = sorted((j for j in all_of_them if j not in near), key=lambda j, h=h: (score[h][j], j))
            held[h] = sorted(near + rest[len(rest) - min(len(rest), budget - len(near)) :])
        at += size
        records.append(([list(x) for x in held], out[-1]))
    return records[len(sizes) - 1 :]


@pytest.mark.usefixtures("x64")
def test_a_prompt_in_pieces_attends_to_what_the_pieces_before_it_left():
    """Pieces of 6, of which the shorter prompts have a padded last one."""
    sizes = (6, 6, 6)
    memory, out = run("h2o", {"budget": 8, "recent": 3}, sizes=sizes)
    for row in range(3):
        q, k, v = (np.asarray(x[row], np.float64) for x in streams())
        turn = lambda x: np.asarray(rope.rotate(jnp.asarray(x)[None], jnp.arange(LONGEST)[None], theta=THETA))[0]  # noqa: E731
        cut = [min(6, PROMPT[row] - i) for i in (0, 6, 12) if PROMPT[row] > i]
        want = in_pieces(turn(q), turn(k), v, cut, T[row], 8, 3)
        for record, (kept, output) in enumerate(want):
            if record or len(cut) == 3:  # `out` of the first record is that of the last piece.
                np.testing.assert_allclose(out[record, row], output, atol=1e-11)
            assert [sorted(tokens(memory, record, row, head)) for head in range(K)] == kept, (row, record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("policy", ["streaming", "random"])
def test_what_stays_by_place_alone_is_the_same_in_any_pieces(policy):
    options = options_of(*CASES[policy])
    whole, parts = (run(policy, options, sizes=sizes)[0] for sizes in ((SIZE,), (5, 4, 9)))
    for row in range(3):
        for head in range(K):
            assert tokens(whole, 0, row, head).keys() == tokens(parts, 0, row, head).keys()


def test_layers_have_slots_of_their_own_and_bytes_are_those_asked_for():
    def slots_of(name, layers=4, length=400, **options):
        made = [Policy(name, tuple(options.items()), layer=i, layers=layers, drawn=20) for i in range(layers)]
        kw = {"N": N, "K": K, "H": H, "dtype": jnp.float32}
        return [jax.eval_shape(lambda p=p: p.empty(1, length, **kw)) for p in made]

    size = lambda memories: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(memories))  # noqa: E731
    # window 16 of 64: mean 48, least 2, most 94, step 30, as budgets.pyramid deals them; 20 drawn tokens and a free one
    assert [m.k.shape[2] for m in slots_of("pyramid", budget=64, window=16)] == [x + 37 for x in (94, 64, 34, 4)]
    assert [m.k.shape[2] for m in slots_of("h2o", budget=64.0, recent=8.0)] == [65] * 4
    assert [m.k.shape[2] for m in slots_of("h2o", budget=0.25, recent=0.1)] == [101] * 4
    shares = slots_of("prefix_kv", shares="0.9, 0.5, 0.25, 0.0", budget=0.0)
    assert [m.k.shape[2] for m in shares] == [42, 202, 302, 401]
    for name, more in {
        "h2o": {"recent": 8}, "keyformer": {"recent": 8, "steps": 9}, "scissorhands": {"recent": 8}, "tova": {},
        "ems": {"recent": 8}, "random": {"recent": 8}, "streaming": {}, "prefix_kv": {}, "elastic": {},
    }.items():  # fmt: skip
        asked = 60_000
        memories = slots_of(name, bytes=asked, **more)
        counters = sum(x.size * x.dtype.itemsize for m in memories for x in jax.tree.leaves(m) if x.ndim == 1)
        assert 0.93 * asked <= size(memories) - counters <= asked, (name, size(memories))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["random", "streaming", "h2o-released"])
def test_a_watched_memory_says_how_much_attention_of_the_full_cache_it_keeps(name):
    policy, options = CASES[name]
    options = options_of(policy, options)
    memory, out = run(policy, options, watch=True)
    alone, plain = run(policy, options)
    np.testing.assert_array_equal(out, plain)
    for row in range(3):
        q, k, _ = (np.asarray(x[row], np.float64) for x in streams())
        q, k = (
            np.asarray(rope.rotate(jnp.asarray(x)[None], jnp.arange(LONGEST)[None], theta=THETA))[0] for x in (q, k)
        )
        mass = best = 0.0
        for record in range(T[row] - PROMPT[row]):
            t = PROMPT[row] + record
            for n in range(N):
                x = np.array([q[t, n] @ k[j, n // (N // K)] for j in range(t + 1)]) / np.sqrt(H)
                p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
                seen = {*tokens(alone, record, row, n // (N // K)), t}
                if name == "h2o-released" and t > options["budget"]:
                    seen.discard(t - options["recent"])
                mass += sum(p[j] for j in seen) / N
                best += np.sort(p)[-len(seen) :].sum() / N
            np.testing.assert_allclose(memory.mass[record + 1, row], mass, atol=1e-11)
            np.testing.assert_allclose(memory.best[record + 1, row], best, atol=1e-11)
        assert memory.steps[-1, row] == T[row] - PROMPT[row]


@pytest.mark.parametrize("name", ["streaming", "h2o", "scissorhands", "ems"])
def test_a_step_costs_the_same_however_long_the_text_may_become(name):
    """The compiled step of a layer: its state, its operations and what it reads and writes, at 100 times the length."""
    options = options_of(*CASES[name])

    def compiled(length):
        made = Policy(name, tuple(sorted(options.items())))
        state = jax.eval_shape(lambda: made.empty(2, length, N=N, K=K, H=H, dtype=jnp.float32))
        rotate = functools.partial(rope.rotate, theta=THETA)

        def step(memory, q, k, v, at):
            context = Context(at[:, None], None, masks.Causal(), start=at)
            return recall(Partition(), q, k, v, context, context.mask, memory, rotate=rotate, steady=True)

        rows = [jax.ShapeDtypeStruct((2, 1, heads, H), jnp.float32) for heads in (N, K, K)]
        return jax.jit(step).lower(state, *rows, jax.ShapeDtypeStruct((2,), jnp.int32)).compile()

    short, long = compiled(50), compiled(5000)
    costs = [(made.cost_analysis()["flops"], made.cost_analysis()["bytes accessed"]) for made in (short, long)]
    assert costs[0] == costs[1] and costs[0][0] > 0
    sizes = [made.memory_analysis() for made in (short, long)]
    assert sizes[0].argument_size_in_bytes == sizes[1].argument_size_in_bytes
    assert sizes[0].temp_size_in_bytes == sizes[1].temp_size_in_bytes
