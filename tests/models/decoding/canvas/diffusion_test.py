"""Diffusion samplers: exact checks 3, 5, 6, 7 and 19, laws by enumeration, draws by chi-square against the exact
law."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import diffusion, reveal
from models.objectives import masked_diffusion as md
from tests.models import tiny_laws

SHAPES = {"A": (3, 4), "B": (2, 6), "C": (4, 3), "D": (2, 3)}


def law_of(table, method, **options):
    """The exact law, in float64."""
    with jax.enable_x64(True):
        size, length = table.shape[-1], table.shape[1]
        return diffusion.exact_law(
            tiny_laws.denoiser(table), length=length, vocab_size=size, mask_id=size, method=method, **options
        )


def draw(table, method, batch, seed=0, **options):
    """Tokens and calls in float32, one compiled program."""
    denoise, (length, size) = tiny_laws.denoiser(table, jnp.float32), table.shape[1:]
    run = lambda key: diffusion.sample(  # noqa: E731
        denoise, key, batch=batch, length=length, vocab_size=size, mask_id=size, method=method, **options
    )
    # Small programs, many of them: most of the time would go into optimising what runs for a second.
    tokens, calls = jax.jit(run)(jax.random.key(seed))
    return np.asarray(tokens), np.asarray(calls)


def ancestral_by_hand(table, rates):
    """T-step ancestral law by walking every reveal pattern of every state."""
    p, (length, size) = tiny_laws.probabilities(table), table.shape[1:]
    law = {(size,) * length: 1.0}
    for now, then in itertools.pairwise(rates):
        new = {}
        for z, mass in law.items():
            choices = [
                [(size, then / now)] + [(v, (1 - then / now) * tiny_laws.at(p, z)[l, v]) for v in range(size)]
                if z[l] == size
                else [(z[l], 1.0)]
                for l in range(length)
            ]
            for picks in itertools.product(*choices):
                key = tuple(int(c) for c, _ in picks)
                new[key] = new.get(key, 0.0) + mass * math.prod(q for _, q in picks)
        law = new
    out = np.zeros((size,) * length)
    for z, mass in law.items():
        if mass:
            out[z] += mass
    return out


@pytest.mark.parametrize("case", ["A", "C", "D"])
def test_ancestral_law_and_its_bound(case):
    """Check 3: the recursion against a walk by hand; KL to P at most the gap of the T-step loss, and both shrink."""
    law = tiny_laws.joint(case)
    table, x, kls = tiny_laws.oracle_table(law), np.argwhere(law > 0), []
    for steps in (1, 2, 4, 8):
        got = law_of(table, "ancestral", steps=steps)
        if steps <= 2:
            np.testing.assert_allclose(got, ancestral_by_hand(table, np.linspace(1, 0, steps + 1)), atol=1e-13)
        with jax.enable_x64(True):
            loss = np.asarray(md.nelbo_exact(tiny_laws.denoiser(table), x, law.shape[0], steps=steps))
        kls.append(tiny_laws.kl(law, got))
        assert kls[-1] <= (law[law > 0] * loss).sum() - tiny_laws.entropy(law) + 1e-12
    assert kls[0] > kls[1] > kls[2] > kls[3] > 0


def test_cosine_grid_is_worse_with_true_conditionals():
    """Section 5, measured: at T = 16 the cosine grid has the larger KL on every case."""
    for case in ("A", "C"):
        law = tiny_laws.joint(case)
        table = tiny_laws.oracle_table(law)
        linear, cosine = (tiny_laws.kl(law, law_of(table, "ancestral", steps=16, grid=g)) for g in ("linear", "cosine"))
        assert 0 < linear < cosine


DRAWN = [
    ("A", "ancestral", {"steps": 4}),
    ("A", "ancestral_two_step", {"steps": 3, "schedule": "cosine_md4", "grid": "cosine"}),
    ("A", "cached", {"steps": 4, "temperature": 0.7}),
    ("A", "ancestral", {"steps": 4, "remask": 0.8}),
    ("A", "first_hitting", {}),
    ("A", "max_prob", {"steps": 4}),
    ("A", "margin", {"steps": 2}),
    ("A", "entropy", {"steps": 4, "block": 2}),
    ("A", "random", {"steps": 2}),
    ("A", "random", {"steps": 5, "counts": "dream"}),
    ("A", "candidate", {"steps": 4, "temperature": 0.8}),
    ("A", "drawn", {"steps": 4, "temperature": 0.6}),
    ("A", "threshold", {"threshold": 0.6}),
    ("A", "factor", {"factor": 0.9, "block": 2, "confidence": "max_prob"}),
    ("C", "left_to_right", {"steps": 3}),
    ("C", "max_prob", {"steps": 1, "init": [2, 4, 4], "guidance": 0.5}),
]


@pytest.mark.parametrize("case,method,options", DRAWN)
def test_draws_follow_the_exact_law(case, method, options):
    """Check 3 and its kin: chi-square at 1e-4 with random-logit tables; a TV of 0.02 is seen with chance > 0.99."""
    size, length = SHAPES[case]
    table, batch = tiny_laws.tab_table(size, length, seed=11), 80_000
    assert tiny_laws.power(size**length, batch) > 0.99
    exact = law_of(table, method, **options)
    tokens, calls = draw(table, method, batch, **options)
    statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(tokens, size), exact)
    assert statistic < limit
    assert (calls > 0).all()


def test_first_hitting_is_the_random_order_law():
    """Check 5: its law, its likelihood above the bound, and the ancestral law's way to it."""
    table = tiny_laws.tab_table(3, 4, seed=5)
    order, got = tiny_laws.random_order_law(table), law_of(table, "first_hitting")
    np.testing.assert_allclose(got, order, atol=1e-13)
    with jax.enable_x64(True):
        bound = np.asarray(md.nelbo_exact(tiny_laws.denoiser(table), tiny_laws.states(3, 4), 3))
    assert (-np.log(order.ravel()) <= bound + 1e-12).all()
    gaps = [tiny_laws.tv(law_of(table, "ancestral", steps=steps), order) for steps in (8, 16, 32)]
    assert gaps[2] < gaps[1] < gaps[0] and 1.7 < gaps[1] / gaps[2] < 2.3
    _, calls = draw(table, "first_hitting", 16)
    assert (calls == 4).all()


def test_hitting_rates():
    """E[m] after r reveals of four tokens: 1, .8, .6, .4, .2 (section 5); five standard errors of 2e5 draws."""
    u = 1 - jax.random.uniform(jax.random.key(0), (4, 200_000))
    rate = jnp.ones(200_000)
    for r, expected in enumerate((0.8, 0.6, 0.4, 0.2)):
        rate = diffusion.next_hitting_rate(u[r], rate, 4 - r)
        assert abs(float(rate.mean()) - expected) < 5 * 0.5 / 200_000**0.5


@pytest.mark.parametrize("case", ["A", "B", "C", "D"])
def test_position_rules_from_conditionals_are_exact(case):
    """Check 6, first half: TV 0 to P."""
    law = tiny_laws.joint(case)
    table = tiny_laws.oracle_table(law)
    for method in ("max_prob", "margin", "entropy", "random", "left_to_right", "first_hitting"):
        options = {} if method == "first_hitting" else {"steps": law.ndim}
        assert tiny_laws.tv(law_of(table, method, **options), law) < 1e-13
        if method == "random":
            np.testing.assert_allclose(law_of(table, method, **options), tiny_laws.random_order_law(table), atol=1e-13)


def candidate_by_hand(table, temperature=1.0, ranked_at=1.0):
    """One token per step, at the position whose drawn candidate is the most probable: by walking all candidates.

    Tokens are drawn at one temperature, and positions ranked by the candidate's probability at another.
    """
    p, (length, size) = tiny_laws.probabilities(table / temperature), table.shape[1:]
    rank = tiny_laws.probabilities(table / ranked_at)
    law = {(size,) * length: 1.0}
    for _ in range(length):
        new = {}
        for z, mass in law.items():
            rows, open_ = tiny_laws.at(p, z), [l for l in range(length) if z[l] == size]
            sure = tiny_laws.at(rank, z)
            for picks in itertools.product(range(size), repeat=len(open_)):
                chances = [rows[l, v] for l, v in zip(open_, picks, strict=True)]
                best = int(np.argmax([sure[l, v] for l, v in zip(open_, picks, strict=True)]))
                y = list(z)
                y[open_[best]] = picks[best]
                new[tuple(y)] = new.get(tuple(y), 0.0) + mass * math.prod(chances)
        law = new
    out = np.zeros((size,) * length)
    for z, mass in law.items():
        out[z] = mass
    return out


@pytest.mark.parametrize("case,seed", [("A", 0), ("B", 0), ("C", 2), ("D", 0)])
def test_candidate_confidence_is_biased(case, seed):
    """Check 6, second half: TV to P above 0.3 on A, B, C, and 0 on D, where every candidate is as sure as another."""
    law = tiny_laws.joint(case, seed)
    table = tiny_laws.oracle_table(law)
    got = law_of(table, "candidate", steps=law.ndim)
    if case == "D":
        assert tiny_laws.tv(got, law) < 1e-13
    else:
        np.testing.assert_allclose(got, candidate_by_hand(table), atol=1e-12)
        assert tiny_laws.tv(got, law) > 0.3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_released_rules_rank_at_the_temperature_they_say(temperature):
    """LLaDA ranks candidates without the temperature, Dream with it; they agree at 1 alone."""
    table = tiny_laws.tab_table(3, 3, seed=3)
    laws = [law_of(table, method, steps=3, temperature=temperature) for method in ("candidate", "drawn")]
    for law, ranked_at in zip(laws, (1.0, temperature), strict=True):
        np.testing.assert_allclose(law, candidate_by_hand(table, temperature, ranked_at), atol=1e-12)
    assert (tiny_laws.tv(*laws) > 1e-3) == (temperature != 1.0)


def test_two_steps_of_two_random_tokens():
    """Check 7: choose a pair, draw it independently, then the other pair given it."""
    table = tiny_laws.oracle_table(tiny_laws.joint("A"))
    p, expected = tiny_laws.probabilities(table), np.zeros((3,) * 4)
    for x in tiny_laws.states(3, 4):
        for pair in itertools.combinations(range(4), 2):
            first = tiny_laws.at(p, [3] * 4)
            z = [x[l] if l in pair else 3 for l in range(4)]
            second = tiny_laws.at(p, z)
            chance = math.prod((first if l in pair else second)[l, x[l]] for l in range(4))
            expected[tuple(x)] += chance / 6
    np.testing.assert_allclose(law_of(table, "random", steps=2), expected, atol=1e-13)
    assert tiny_laws.tv(expected, tiny_laws.joint("A")) > 1e-3


def test_cached_makes_the_expected_calls_and_the_same_tokens():
    """Check 19: E = 1 + (T-1)(1-(1-1/T)^L), at most min(T, L+1); early_stop saves the calls after the last reveal."""
    table, steps, batch = tiny_laws.tab_table(3, 4, seed=1), 8, 40_000
    plain, full = draw(table, "ancestral", batch, steps=steps)
    tokens, calls = draw(table, "cached", batch, steps=steps)
    assert (tokens == plain).all() and (full == steps).all()
    assert calls.max() <= min(steps, 5) and calls.min() >= 1
    expected = 1 + (steps - 1) * (1 - (1 - 1 / steps) ** 4)
    assert abs(calls.mean() - expected) < 4.5 * calls.std() / batch**0.5
    tokens, early = draw(table, "cached", batch, steps=steps, early_stop=True)
    saved = (1 - 1 / steps) ** 4  # the last reveal came before the last step
    assert (tokens == plain).all() and early.max() <= 4
    assert abs(early.mean() - (expected - saved)) < 4.5 * early.std() / batch**0.5


def test_rows_do_not_depend_on_their_batch():
    """The same request gives the same tokens in any row of any batch, step by step or by confidence."""
    table = tiny_laws.tab_table(3, 4, seed=2)
    for method, options in (
        ("ancestral", {"steps": 3}),
        ("threshold", {"threshold": 0.5}),
    ):
        many, calls = draw(table, method, 64, **options)
        few, some = draw(table, method, 3, requests=jnp.array([50, 7, 33]), **options)
        assert (few == many[[50, 7, 33]]).all() and (some == calls[[50, 7, 33]]).all()


def test_blocks_are_decoded_in_order_and_prompts_are_kept():
    table = tiny_laws.tab_table(2, 6, seed=4)
    init = jnp.array([1, 2, 2, 0, 2, 2])
    for method, options in (
        ("ancestral", {"steps": 6, "remask": 1.0}),
        ("max_prob", {"steps": 6, "block": 2}),
        ("factor", {"block": 3}),
        ("first_hitting", {}),
    ):
        tokens, calls = draw(table, method, 32, init=init, **options)
        assert (tokens[:, [0, 3]] == [1, 0]).all() and (tokens < 2).all()
        assert calls.max() <= options.get("steps", 4)
    # Blocks of one, whatever the rule inside, are left-to-right decoding.
    exact = law_of(table, "max_prob", steps=6, block=1)
    np.testing.assert_allclose(exact, tiny_laws.order_law(table, range(6)), atol=1e-13)
    # More steps than tokens: the calls are the tokens.
    _, calls = draw(table, "random", 8, steps=12)
    assert (calls == 6).all()


def test_temperature_zero_is_greedy():
    table = tiny_laws.tab_table(3, 4, seed=6)
    tokens, _ = draw(table, "max_prob", 4, steps=4, temperature=0.0)
    z, p = np.full(4, 3), tiny_laws.probabilities(table)
    for _ in range(4):
        rows = np.where((z == 3)[:, None], tiny_laws.at(p, z), -1)
        l = rows.max(1).argmax()
        z[l] = rows[l].argmax()
    assert (tokens == z).all()


def test_guidance_is_the_extrapolated_law():
    """CFG by hand on one free token: softmax((1+w) cond - w uncond), two calls."""
    table = tiny_laws.tab_table(4, 3, seed=8)
    init, w = np.array([2, 0, 4]), 1.5
    logits = (1 + w) * tiny_laws.at(table, init)[2] - w * tiny_laws.at(table, [4, 4, 4])[2]
    expected = np.exp(logits) / np.exp(logits).sum()
    got = law_of(table, "ancestral", steps=1, init=init, guidance=w)
    np.testing.assert_allclose(got[2, 0], expected, atol=1e-13)
    _, calls = draw(table, "ancestral", 2, steps=3, init=init, guidance=w)
    assert (calls == 6).all()


def test_remasking_keeps_a_single_tokens_law():
    """ReMDM leaves the marginals alone: one token, its law for every strength; and 0 is ancestral."""
    table = tiny_laws.oracle_table(np.array([0.5, 0.3, 0.2]))
    for remask in (0.0, 0.5, 1.0):
        got = law_of(table, "ancestral", steps=5, remask=remask)
        np.testing.assert_allclose(got, [0.5, 0.3, 0.2], atol=1e-13)
    wide = tiny_laws.tab_table(3, 4, seed=3)
    assert tiny_laws.tv(law_of(wide, "ancestral", steps=4), law_of(wide, "ancestral", steps=4, remask=1.0)) > 1e-3


def test_transfer_counts():
    """Check 7, the counts."""
    assert reveal.transfer_counts(10, 4).tolist() == [3, 3, 2, 2]
    assert reveal.transfer_counts(7, 3).tolist() == [3, 2, 2]
    assert reveal.transfer_counts(np.array([2, 4]), 3).tolist() == [[1, 1, 0], [2, 1, 1]]


def test_refusals():
    table = tiny_laws.tab_table(2, 3)
    for match, method, options in (
        ("'maxprob' is unknown", "maxprob", {"steps": 2}),
        ("no option 'treshold'", "threshold", {"treshold": 0.5}),
        ("steps=3", "random", {"steps": 3, "block": 2}),
        ("steps=None", "ancestral", {}),
    ):
        with pytest.raises(ValueError, match=match):
            draw(table, method, 1, **options)
