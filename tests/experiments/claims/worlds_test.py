"""Sources that are known: what the check `worlds` says of them, by other sums."""

import itertools
import re

import numpy as np
import pytest

from configs.claims import deciding
from experiments.claims import worlds
from tests.plain import control as plain

pytestmark = pytest.mark.usefixtures("one_device")
SEEDS = (0, 7)


@pytest.mark.parametrize("seed", SEEDS)
def test_routing_is_a_sum_over_states_and_its_best_is_a_knapsack(seed):
    world, V = (worlds.unlike if seed else worlds.alike)(np.random.default_rng(seed)), worlds.V
    assert world.shape == (V, V, V) and np.allclose(world.sum(-1), 1)
    found = worlds.routing(world)
    step = np.zeros((V * V, V * V))
    for a, b, c in itertools.product(range(V), repeat=3):
        step[a * V + b, b * V + c] = world[a, b, c]
    values, vectors = np.linalg.eig(step.T)
    often = np.abs(vectors[:, np.argmax(values.real)].real)
    often = (often / often.sum()).reshape(V, V)
    small = np.array([sum(often[a, b] * world[a, b] for a in range(V)) / often[:, b].sum() for b in range(V)])
    cost = lambda p, law: -sum(p[v] * np.log2(law[v]) for v in range(V) if p[v] > 0)  # noqa: E731
    places = [
        (often[a, b], cost(world[a, b], world[a, b]), cost(world[a, b], small[b])) for a in range(V) for b in range(V)
    ]
    large, alone = (sum(w * place[i] for w, *place in places) for i in range(2))
    left, best = worlds.SHARE, alone
    for w, mine, theirs in sorted(places, key=lambda one: one[1] - one[2]):
        best, left = best - min(w, left) * (theirs - mine), left - min(w, left)
    want = {"large": large, "small": alone, "random": alone - worlds.SHARE * (alone - large), "oracle": best}
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    entropy = [-sum(p * np.log(p) for p in law if p > 0) for law in small]
    left, taken = worlds.SHARE, alone
    for b in np.argsort(entropy)[::-1]:
        whole = often[:, b].sum()
        gain = sum(often[a, b] * (cost(world[a, b], small[b]) - cost(world[a, b], world[a, b])) for a in range(V))
        taken, left = taken - min(whole, left) / whole * gain, left - min(whole, left)
    np.testing.assert_allclose(found["entropy"], taken, rtol=1e-5)
    assert found["oracle"] <= min(found["entropy"], found["top"], found["random"]) and found["gap"] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_texts_by_what_python_matches(seed):
    found = worlds.masking(np.random.default_rng(seed))
    chain = np.random.default_rng(seed).dirichlet(np.full(3, 0.5), 3)
    pattern = re.compile("(?:ab|b){1,3}|a{2,5}")
    texts = ["".join(x) for n in range(7) for x in itertools.product("ab", repeat=n)]
    good = [text for text in texts if pattern.fullmatch(text)]
    p, q = {}, {}
    for text in good:
        p[text] = q[text] = 1.0
        last = 0
        for i, letter in enumerate(f"{text}$"):
            law = chain[last]
            may = [v for v, one in enumerate("ab") if any(other.startswith(text[:i] + one) for other in good)]
            may += [2] * (text[:i] in good)
            last = "ab$".index(letter)
            p[text], q[text] = p[text] * law[last], q[text] * law[last] / law[may].sum()
    np.testing.assert_allclose(sum(q.values()), 1, rtol=1e-12)
    np.testing.assert_allclose(found["chain"], 1 - sum(p.values()), rtol=1e-9)
    far = sum(abs(q[text] - p[text] / sum(p.values())) for text in good) / 2
    np.testing.assert_allclose(found["mask"], far, rtol=1e-4)  # Masses are float32.
    assert found["weighed"] < 1e-5


def test_guided_laws_by_loops():
    found = worlds.guiding(np.random.default_rng(3))
    classes, far = np.random.default_rng(3).dirichlet(np.ones(3), (2, 3)), {"released": 0.0, "none": 0.0}
    for text in itertools.product(range(3), repeat=worlds.LENGTH):
        likelihood = [np.prod([chain[a, b] for a, b in itertools.pairwise((0, *text))]) for chain in classes]
        own = classes[:, text[-1]]
        mixture = (likelihood[0] * own[0] + likelihood[1] * own[1]) / sum(likelihood)
        scores, _ = plain.gedi_released(
            np.log(mixture), np.log(likelihood), np.log(own), worlds.LENGTH, weight=1.0, filter_p=0.0, target_p=1e-300
        )
        far["released"] += likelihood[0] * np.abs(plain.softmax(scores) - own[0]).sum() / 2
        far["none"] += likelihood[0] * np.abs(mixture - own[0]).sum() / 2
    for name, value in far.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
    assert found["bayes"] < 1e-5


def test_the_claim_names_what_is_measured():
    claim = deciding.get_claim()
    few = worlds.run(claim | {"seeds": (0, 1, 2), "looks": (2,)}, None, jobs=1, quiet=True)
    assert len(few) == len(claim["contrasts"])
    assert all(row.numbers["seeds"] == [0, 1, 2] and "the first ahead by" in row.measured for row in few)
