"""Schedules of experts over eight devices: ExFlow's one exchange and speculative shuffling decode the same tokens, and
the compiled programs move the bytes of the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.planning import hlo
from experiments.routing import placement as placed
from experiments.routing import speculative, traffic
from models.experts import schedules

W, N, L, E, D, F, H, V, STEPS = 8, 16, 3, 16, 12, 10, 8, 23, 5
t, d = N // W, D // 4  # tokens of a device, width of a head
RNG = np.random.default_rng(7)
draw = lambda *shape: RNG.normal(size=shape)  # noqa: E731
MODEL = {
    "embed": draw(V, D), "qkv": draw(L, H, D, 3 * d) / 2, "out": draw(L, H, d, D) / 6, "router": draw(L, D, E),
    "up": draw(L, E, D, F) / 3, "down": draw(L, E, F, D) / 3,
}  # fmt: skip
PROMPT = RNG.integers(0, V, N)
PLACES = {
    "in order": placed.contiguous(L, E, W),
    "drawn": np.stack([RNG.permutation(np.repeat(np.arange(W), E // W)) for _ in range(L)]),
}


def unit(x):
    return x / (1e-3 + (x * x).mean(-1, keepdims=True)) ** 0.5


@functools.cache
def plain():
    """(tokens `[STEPS + 1, N]`, trace `[STEPS, N, L]`, last vectors) by loops over tokens, in numpy."""
    tokens, traces, past = [PROMPT], [], [[[[] for _ in range(H)] for _ in range(L)] for _ in range(N)]
    for _ in range(STEPS):
        rows, trace = [], np.zeros((N, L), int)
        for n, token in enumerate(tokens[-1]):
            x = MODEL["embed"][token]
            for i in range(L):
                added = 0
                for h in range(H):
                    q, k, v = np.split(unit(x) @ MODEL["qkv"][i, h], 3)
                    past[n][i][h].append((k, v))
                    score = np.exp([q @ key for key, _ in past[n][i][h]])
                    value = sum(w * v for w, (_, v) in zip(score / score.sum(), past[n][i][h], strict=True))
                    added = added + value @ MODEL["out"][i, h]
                x = x + added
                z = unit(x) @ MODEL["router"][i]
                e = trace[n, i] = int(np.argmax(z))
                gate = np.exp(z[e] - z.max()) / np.exp(z - z.max()).sum()
                x = x + gate * np.maximum(unit(x) @ MODEL["up"][i, e], 0) @ MODEL["down"][i, e]
            rows.append(x)
        traces.append(trace)
        tokens.append(np.argmax(np.stack(rows) @ MODEL["embed"].T, axis=1))
    return np.stack(tokens), np.stack(traces), np.stack(rows)


def attended(weights, past, layer, x, token, heads):
    """(what `heads` of attention add, keys and values): past a pair of `[2, L, N, STEPS, H', d]` and how many are
    there, of as many heads as `heads` names."""
    past, count = past
    there = jnp.arange(STEPS + 1) < count
    there = there.at[STEPS].set(True)
    q, k, v = jnp.split(jnp.einsum("sd,hde->she", unit(x), weights["qkv"][layer][heads]), 3, axis=-1)
    keys, values = (jnp.concatenate([p[layer][token], a[:, None]], axis=1) for p, a in zip(past, (k, v), strict=True))
    weight = jax.nn.softmax(jnp.where(there, jnp.einsum("she,sphe->shp", q, keys), -jnp.inf), axis=-1)
    mixed = jnp.einsum("shp,sphe->she", weight, values)
    return jnp.einsum("she,hed->sd", mixed, weights["out"][layer][heads]), jnp.stack([k, v], axis=1)


def stack_of(schedule, weights, bank, slot, past):
    """The model as a stack: `bank` the experts of this device `[E / W, ...]`, which lie at `slot [L, E]`."""

    def mix(layer, x, token):
        heads = jax.lax.axis_index("expert")[None] if schedule == "speculative" else jnp.arange(H)
        added, context = attended(weights, past, layer, x, token, heads)
        return (added if schedule == "speculative" else x + added), context

    def route(layer, x):
        p = jax.nn.softmax(unit(x) @ weights["router"][layer], axis=-1)
        return jnp.argmax(p, axis=-1).astype(jnp.int32), jnp.max(p, axis=-1)

    def expert(layer, x, which):
        here = slot[layer][which] % (E // W)
        hidden = jax.nn.relu(jnp.einsum("sd,sdf->sf", unit(x), bank["up"][layer][here]))
        return jnp.einsum("sf,sfd->sd", hidden, bank["down"][layer][here])

    return schedules.Stack(L, mix, route, expert)


def step_of(schedule, where, places, seats=0):
    """A compiled step on eight devices: `(weights, bank, past, count, tokens [N], order [L, N]) -> Given`."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("expert",))
    over, P = schedules.Over("expert", W, places, seats), jax.sharding.PartitionSpec
    slot, where = jnp.asarray(placed.slots(where)), jnp.asarray(where)
    cut = schedule == "speculative"

    def local(weights, bank, past, count, tokens, order):
        stack = stack_of(schedule, weights, bank, slot, (past, count))
        if cut:
            return schedules.speculative(stack, over, where, order, weights["embed"][tokens])
        mine = jax.lax.dynamic_slice_in_dim(tokens, jax.lax.axis_index("expert") * t, t)
        return getattr(schedules, schedule)(stack, over, where, weights["embed"][mine])

    heads = P(None, None, None, None, "expert") if cut else P()
    context = P(None, None, None, "expert") if cut else P()
    return jax.jit(jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(None, "expert"), heads, P(), P(), P()),
        out_specs=schedules.Given(P(), context, P(), P()), check_vma=False,
    ))  # fmt: skip


def banked(where):
    """The experts as they lie: device after device."""
    at = np.argsort(placed.slots(where), axis=1)
    return {name: np.stack([MODEL[name][i][at[i]] for i in range(L)]) for name in ("up", "down")}


def decoded(schedule, where, places, seats=0, order=None):
    """(tokens, traces, last vectors, lost) of STEPS steps; `order [STEPS, L, N]` of guesses."""
    tokens, traces, lost = [PROMPT], [], 0
    run, bank = step_of(schedule, where, places, seats), banked(where)
    weights = {name: MODEL[name] for name in ("embed", "qkv", "out", "router")}
    past = np.zeros((2, L, N, STEPS, H, d))
    for step in range(STEPS):
        plan = np.tile(np.arange(N), (L, 1)) if order is None else order[step]
        given = jax.device_get(run(weights, bank, past, step, tokens[-1], plan))
        lost += int(given.lost)
        past[:, :, :, step] = np.moveaxis(given.context, 2, 0)
        traces.append(given.expert)
        tokens.append(np.argmax(given.x @ MODEL["embed"].T, axis=1))
    return np.stack(tokens), np.stack(traces), given.x, lost


def same(found):
    tokens, traces, last, lost = found
    want = plain()
    assert lost == 0
    np.testing.assert_array_equal(tokens, want[0])
    np.testing.assert_array_equal(traces, want[1])
    np.testing.assert_allclose(last, want[2], rtol=1e-10, atol=1e-12)


def homes(where):
    """(places that `returning` and `coherent` need), over all steps."""
    home = np.repeat(np.arange(W), t)
    traces = plain()[1]
    return [max(traffic.places(trace, home, where, W, stays=stays) for trace in traces) for stays in (False, True)]


@pytest.mark.parametrize("name", PLACES)
def test_one_exchange_a_layer_decodes_the_tokens_of_two(x64, name):
    """In buffers as long as the trace needs, under both placements; every expert that is asked for was somewhere."""
    where = PLACES[name]
    two, one = homes(where)
    same(decoded("returning", where, two))
    same(decoded("coherent", where, one))
    assert len(np.unique(plain()[1])) > E // 2


def guesses(kind, where):
    """`[STEPS, L, N]`: the token of each place, from a table that is empty, of chance, from a trace, or right."""
    tokens, traces, _ = plain()
    home, rng = np.repeat(np.arange(W), t), np.random.default_rng(0)
    table = speculative.tables(np.concatenate(traces[:2]), np.concatenate(tokens[:2]), where, V)
    made = []
    for step in range(STEPS):
        for layer in range(L):
            to = where[layer][traces[step][:, layer]]
            guess, sure = {
                "empty": lambda: (home, np.zeros(N)),
                "random": lambda: (rng.integers(0, W, N), rng.uniform(size=N)),
                "table": lambda: table.guess(layer, tokens[step]),  # noqa: B023
                "right": lambda: (to, np.ones(N)),  # noqa: B023
            }[kind]()
            made.append(speculative.shuffle(guess, home, sure, W))
    at = np.stack(made).reshape(STEPS, L, N)
    return at, np.argsort(at, axis=-1, kind="stable")


@pytest.mark.parametrize("kind", ["empty", "random", "table", "right"])
def test_no_table_of_guesses_changes_a_token(x64, kind):
    where = PLACES["drawn"]
    at, order = guesses(kind, where)
    need = max(traffic.places(trace, here.T, where, W) for trace, here in zip(plain()[1], at, strict=True))
    same(decoded("speculative", where, need, order=order))


def test_what_finds_no_room_is_counted(x64):
    """With one place less than the busiest pair needs, and with no seat for those that arrive."""
    where = PLACES["in order"]
    two, one = homes(where)
    assert min(two, one) >= 1
    assert decoded("returning", where, two - 1)[3] > 0
    assert decoded("coherent", where, one - 1)[3] > 0
    assert decoded("coherent", where, one, seats=t)[3] > 0


def moved(schedule, places, seats=0):
    """Bytes by kind of collective in the compiled step, in float32."""
    shape = lambda *of, dtype=jnp.float32: jax.ShapeDtypeStruct(of, dtype)  # noqa: E731
    weights = {name: shape(*MODEL[name].shape) for name in ("embed", "qkv", "out", "router")}
    bank = {name: shape(*MODEL[name].shape) for name in ("up", "down")}
    ids = functools.partial(shape, dtype=jnp.int32)
    step = step_of(schedule, PLACES["in order"], places, seats)
    text = step.lower(weights, bank, shape(2, L, N, STEPS, H, d), ids(), ids(N), ids(L, N)).compile().as_text()
    found: dict[str, float] = {}
    for each in hlo.collectives(hlo.computations(text), {"expert": W}):
        found[each.kind] = found.get(each.kind, 0) + each.sent * each.times
    return found


KINDS = {"exchange": "all-to-all", "gather": "all-gather", "reduce": "reduce-scatter"}


@pytest.mark.parametrize(
    ("schedule", "places", "seats"),
    [("returning", 2, 0), ("coherent", 1, 5), ("coherent", 2, 0), ("speculative", 2, 0), ("speculative", 0, 0)],
)
def test_the_compiled_step_moves_the_bytes_of_the_formula(schedule, places, seats):
    """Beside them the count of what was lost, four bytes; right guesses need no exchange at all."""
    want = traffic.scheduled(schedule, L, t, D, (W, places, seats), 2 * H * d)
    found = moved(schedule, places, seats)
    small = found.pop("all-reduce")
    assert small == 2 * (W - 1) / W * 4
    assert {KINDS[name]: count for name, count in want.items() if count} == found
    assert ("all-to-all" in found) == (places > 0)


def test_right_guesses_leave_nothing_to_exchange():
    """Where every device is wanted as often as it has room; by chance most vectors move."""
    where, trace = PLACES["in order"], np.tile(np.arange(N)[:, None] % E, (1, L))
    home, to = np.random.default_rng(1).permutation(np.repeat(np.arange(W), t)), where[0][trace[:, 0]]
    right = speculative.shuffle(to, home, np.ones(N), W)
    assert traffic.places(trace, np.tile(right[:, None], (1, L)), where, W) == 0
    assert speculative.remaining(right, trace[:, :1], where[0]) == 0
    assert traffic.places(trace, home, where, W) > 0


def test_places_of_a_trace_by_hand():
    where = np.array([[0, 0, 1, 1], [1, 0, 1, 0]])
    trace = np.array([[2, 0], [3, 1], [2, 2], [0, 3]])
    # Layer 0 goes to devices 1, 1, 1, 0, layer 1 to 1, 0, 1, 0.
    assert traffic.places(trace, [0, 0, 1, 1], where, 2) == 2
    assert traffic.places(trace, [0, 0, 0, 0], where, 2) == 3
    assert traffic.places(trace, [1, 1, 1, 0], where, 2, stays=True) == 1
    assert traffic.places(trace, np.array([[1, 1], [1, 0], [1, 1], [0, 0]]), where, 2) == 0
    # All on device 1, then all on device 0: four leave where they stand, three of them from home.
    gone = np.array([[2, 1], [2, 1], [3, 3], [3, 1]])
    assert traffic.places(gone, [1, 1, 1, 0], where, 2, stays=True) == 4
    with pytest.raises(ValueError, match="use 'returning', 'coherent' or 'speculative'"):
        traffic.scheduled("both", 1, 1, 1, (2, 1, 0))
