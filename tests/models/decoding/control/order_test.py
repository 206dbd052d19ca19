"""Depth, sets, roles and in-context vectors as functions of numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.decoding.control import depth, sets, steering
from tests.models.lm_test import make
from tests.plain import control as plain

PARTS = [[1, 2], [[3, 4, 5], [6], [7, 8]], [9], [[1, 1], [2]], [3, 4]]


@pytest.fixture(autouse=True)
def _float64(x64):
    """All values here are compared in float64."""


def test_positions_and_masks_of_sets_are_those_of_the_released_code():
    made = sets.layout(PARTS)
    positions, after = plain.set_positions(PARTS)
    assert made.positions.tolist() == positions and made.next == after == 10
    assert (made.mask == plain.set_mask(PARTS)).all()
    assert made.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 2, 3, 4]
    assert made.set_.tolist() == [-1, -1, *[0] * 6, -1, 1, 1, 1, -1, -1]


def test_members_padded_to_the_longest_hide_their_padding():
    made = sets.layout(PARTS[:3], pad=0)
    assert made.tokens.tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 0, 9]
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5]
    assert not made.mask[:, [6, 7, 10]].any() and made.mask[11, [0, 1, 2, 5, 8]].all()


def test_what_a_member_sees_does_not_depend_on_the_order():
    """Each member's tokens see the same tokens at the same places under all six orders."""
    seen = []
    for order in itertools.permutations(PARTS[1]):
        made = sets.layout([PARTS[0], list(order), PARTS[2]])
        seen.append({
            (made.tokens[i], made.positions[i]): sorted(zip(made.tokens[row], made.positions[row], strict=True))
            for i, row in enumerate(made.mask)
        })  # fmt: skip
    assert all(one == seen[0] for one in seen)


def test_the_mask_of_a_pass_is_the_mask_and_a_model_does_not_see_the_order():
    """Positions and the mask make it 0 up to the order of sums, sorted members make it exactly 0."""
    made = sets.layout(PARTS)
    T = len(made.tokens)
    assert (np.asarray(sets.mask_of(made.set_, made.member).dense(T, T)).reshape(T, T) == made.mask).all()
    network = make(init_std=0.5, num_layers=2, dtype="float64", param_dtype="float64")

    @jax.jit
    def logits(tokens, positions, mask):
        return network.logits(network(tokens[None], mask=masks.Dense(mask), positions=positions[None]).features)[0, -1]

    def read(parts, order):
        made = sets.layout([parts[0], [parts[1][i] for i in order], *parts[2:]])
        return np.asarray(logits(jnp.asarray(made.tokens), jnp.asarray(made.positions), jnp.asarray(made.mask)))

    first = read(PARTS, (0, 1, 2))
    for order in itertools.permutations(range(3)):
        np.testing.assert_allclose(read(PARTS, order), first, rtol=1e-5, atol=1e-6)  # float32 logits.
        moved = [PARTS[0], [PARTS[1][i] for i in order], *PARTS[2:]]
        assert (read(sets.ordered(moved), (0, 1, 2)) == read(sets.ordered(PARTS), (0, 1, 2))).all()
    plainly = [sum(PARTS[1], []) if i == 1 else part for i, part in enumerate(PARTS)]
    assert np.abs(read([plainly[0], [plainly[1]], *plainly[2:]], (0,)) - first).max() > 1e-3


def test_plain_text_is_plain():
    made = sets.layout([[5, 6, 7], [8]])
    assert made.positions.tolist() == [0, 1, 2, 3] and (made.mask == np.tril(np.ones((4, 4), bool))).all()


def test_roles_are_added():
    role = sets.roles([2, 1], [sets.SYSTEM, sets.DATA])
    assert role.tolist() == [0, 0, 2]
    x, table = np.arange(6.0).reshape(3, 2), np.array([[1.0, 0.0], [0, 0], [0, 5.0], [0, 0]])
    assert sets.add_roles(x, table, role).tolist() == [[1, 1], [3, 3], [4, 10]]
    assert (sets.add_roles(x, 0 * table, role) == x).all()


def test_skipdecode_falls_along_the_text_and_its_sets_are_nested():
    n = depth.layers_at(np.arange(12), 4, 12, 8, 3)
    want = [8] * 4 + [round(8 - 5 * i / 7) for i in range(8)]
    assert n.tolist() == want and want[-1] == 3
    active = depth.active(n, 8, warm_up=2)
    assert active.sum(-1).tolist() == want and active[:, :2].all() and active[:, -1].all()
    assert not active[-1, 2:7].any()
    assert all((active[t] <= active[s]).all() for t in range(12) for s in range(t))
    assert depth.skip_cost(4, 12, 8, 3) == depth.Cost(sum(want), sum(want))
    assert depth.skip_cost(4, 12, 8, 8) == depth.Cost(96, 96)
    assert depth.layers_at(np.arange(4), 4, 4, 8, 3).tolist() == [8] * 4


def test_exits_decide_at_the_first_layer_that_does_not_go_on():
    go, leave, stop = depth.GO_ON, depth.EXIT, depth.STOP
    layers, stops = depth.exit_at(np.array([[go, leave, stop], [go, go, go], [stop, leave, go], [go, go, stop]]))
    assert layers.tolist() == [2, 3, 1, 3] and stops.tolist() == [False, False, True, True]
    predicted = np.array([[1, 2, 2], [4, 4, 1], [2, 1, 2]])
    labels = depth.exit_labels(predicted, np.array([2, 9, 2]))
    assert labels.tolist() == [[go, leave, leave], [stop, stop, stop], [leave, go, leave]]
    log_p = np.log(np.array([[0.6, 0.4], [0.9, 0.1], [0.99, 0.01]]))
    for bar, want in ((0.5, 1), (0.7, 2), (0.95, 3), (1.01, 3), (0.9, 2)):
        assert depth.confident_exit(log_p, bar - 1e-12 if bar == 0.9 else bar) == want
    assert depth.exit_cost([1, 3, 2], 4, fill=True) == depth.Cost(6, 12)
    assert depth.exit_cost([1, 3, 2], 4, fill=False) == depth.Cost(6, 6)


def test_directions_are_principal():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(6, 2, 4)), rng.normal(size=(6, 2, 4)) + 0.5
    got = np.asarray(steering.direction(inputs, targets))
    change = targets - inputs
    for layer in range(2):
        centred = change[:, layer] - change[:, layer].mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        assert abs(abs(got[layer] @ vectors[:, -1]) - 1) < 1e-12 and got[layer] @ change[:, layer].mean(0) > 0
    one = steering.direction(inputs[:1], targets[:1])
    np.testing.assert_allclose(one[0], change[0, 0] / np.linalg.norm(change[0, 0]), rtol=1e-12)


def test_the_released_direction_is_mean_plus_component():
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 3))
    change = (targets - inputs).reshape(5, 6)
    centred = change - change.mean(0)
    component = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    scores = centred @ component
    component = component * np.sign(scores[np.argmax(np.abs(scores))])
    got = steering.released_direction(inputs, targets)
    np.testing.assert_allclose(got, (component + change.mean(0)).reshape(2, 3), rtol=1e-10)


def test_the_released_push_keeps_the_length_and_zero_is_the_state():
    rng = np.random.default_rng(2)
    h, u = rng.normal(size=(5, 4)), rng.normal(size=4)
    got = np.asarray(steering.released(h, u, 0.3))
    for row in range(5):
        cosine = h[row] @ -u / np.linalg.norm(h[row]) / np.linalg.norm(u)
        y = h[row] / np.linalg.norm(h[row]) + 0.3 * (1 + max(0, cosine)) * u / np.linalg.norm(u)
        np.testing.assert_allclose(got[row], y / np.linalg.norm(y) * np.linalg.norm(h[row]), rtol=1e-12)
    assert (steering.released(h, u, 0.0) == h).all() and (steering.added(jnp.asarray(h), u, 0.0) == h).all()
    np.testing.assert_allclose(steering.added(h, u, 2.0), h + 2 * u)
