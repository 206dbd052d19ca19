"""Rules among siblings: the law of what they give is the target's, exactly, and their chances are the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.verify import kseq, laws, siblings
from tests.plain import verify as plain

ROUNDING = 1e-13  # Sums of at most 7^3 products of seven numbers below 1, each of relative error 2^-52.


def cases():
    """p and q of unlike shapes: peaked, flat, with zeros, equal, disjoint."""
    rng = np.random.default_rng(0)
    made = [(rng.dirichlet(np.full(5, a)), rng.dirichlet(np.full(5, b))) for a, b in ((1, 1), (0.3, 3), (5, 0.3))]
    made.append((np.array([0.5, 0.3, 0.2, 0, 0]), np.array([0.1, 0.2, 0, 0.3, 0.4])))
    made.append((np.array([0.5, 0.5, 0, 0, 0]), np.array([0, 0, 0.25, 0.5, 0.25])))
    made.append((made[0][0], made[0][0]))
    made.append((np.array([0.02, 0.02, 0.02, 0.47, 0.47]), np.full(5, 0.2)))
    return made


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("name", ["recursive", "kseq", "children"])
def test_the_law_is_that_of_the_target(name, replace, k, x64):
    if name == "kseq" and not replace:
        pytest.skip("k-SEQ is for independent drafts")
    for p, q in cases():
        found, _ = laws.one_node(siblings.RULES[name], p, q, k, replace)
        assert laws.total_variation(found, p) < ROUNDING


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("replace", [True, False])
def test_recursive_rejection_is_the_plain_loop(replace, k, x64):
    for p, q in cases():
        found, kept = laws.one_node(siblings.recursive, p, q, k, replace)
        law, wanted = plain.recursive_acceptance(p, q, k, replace)
        np.testing.assert_allclose(found, law, rtol=0, atol=ROUNDING)
        assert abs(kept - wanted) < ROUNDING


def test_one_draft_is_the_token_rule(x64):
    for p, q in cases():
        law, wanted = plain.token_rule(p, q)
        for name in ("recursive", "kseq"):
            found, kept = laws.one_node(siblings.RULES[name], p, q, 1, True)
            np.testing.assert_allclose(found, law, rtol=0, atol=ROUNDING)
            assert abs(kept - wanted) < ROUNDING and abs(wanted - np.minimum(p, q).sum()) < ROUNDING


@pytest.mark.parametrize("name", siblings.RULES)
def test_a_place_without_a_draft_changes_nothing(name, x64):
    """Nodes have room for the most children that any has; a rule counts those that are there."""
    for p, q in cases():
        p, laws_ = jnp.asarray(p), jnp.asarray(np.stack([q] * 4))
        rule, drafts = siblings.RULES[name], jnp.array([1, 3, 0, 2])
        found = rule(p, laws_, drafts, jnp.array([True, True, False, False]))
        alone = rule(p, laws_[:2], drafts[:2], jnp.array([True, True]))
        np.testing.assert_allclose(found.accept, [*alone.accept, 0, 0], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(found.rest, alone.rest, rtol=0, atol=ROUNDING)


def test_verifying_with_the_law_before_the_drafts_were_taken_out_is_seen(x64):
    """The mutant: drawn without replacement, verified with q as it was. Its law is far from p, in our loop and in
    ours."""
    p, q = cases()[2]

    def mutant(p, laws_, drafts, valid):
        return siblings.recursive(p, jnp.broadcast_to(laws_[0], laws_.shape), drafts, valid)

    found, _ = laws.one_node(mutant, p, q, 2, False)
    law, _ = plain.recursive_acceptance(p, q, 2, False, renormalise=False)
    np.testing.assert_allclose(found, law, rtol=0, atol=ROUNDING)
    far = [laws.total_variation(laws.one_node(mutant, p, q, 2, False)[0], p) for p, q in cases()]
    assert max(far) > 0.02


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_rho_is_the_smallest_valid_one(k, x64):
    for p, q in cases():
        rho = float(kseq.smallest_rho(p, q, k))
        assert abs(rho - plain.smallest_rho(p, q, k)) < 1e-9  # The solver's own: an error of rho of 2^-52 / slope.
        law, kept = plain.kseq(p, q, k, rho)
        assert laws.total_variation(law, p) < ROUNDING
        assert abs(float(kseq.acceptance(p, q, k)) - kept) < ROUNDING
        found = laws.one_node(siblings.kseq, p, q, k, True)
        np.testing.assert_allclose(found[0], law, rtol=0, atol=ROUNDING)
        assert abs(found[1] - kept) < ROUNDING
        if 1 + 1e-6 < rho:
            taken = np.minimum(q, p / (1 + 0.9 * (rho - 1)))
            chance = 1 - (1 - taken.sum()) ** k
            assert (p - taken * chance / taken.sum()).min() < -1e-6  # A smaller one leaves no law.


def test_a_larger_rho_is_valid_and_accepts_less(x64):
    for p, q in cases():
        for k in (2, 3):
            law, kept = plain.kseq(p, q, k, float(k))
            assert laws.total_variation(law, p) < ROUNDING
            assert abs(float(kseq.acceptance(p, q, k, k)) - kept) < ROUNDING
            assert kept <= float(kseq.acceptance(p, q, k)) + ROUNDING
            rest = np.asarray(kseq.residual(p, q, k, jnp.float64(k)))
            assert abs(rest.sum() - (1 - kept)) < ROUNDING


def test_kseq_is_within_its_bound_of_optimal_transport(x64):
    """1 - (1 - 1/k)^k of the best coupling (Sun et al. 2023, theorem 3), and never above it."""
    ratios = []
    for p, q in cases():
        for k in (2, 3):
            best, found = plain.optimal_transport(p, q, k), float(kseq.acceptance(p, q, k))
            assert (1 - (1 - 1 / k) ** k) * best - 1e-9 <= found <= best + 1e-9
            ratios.append(found / best if best > 1e-9 else 1.0)
    assert min(ratios) > 0.85


def test_distinct_drafts_are_accepted_more_often_when_the_draft_law_is_flat(x64):
    p, q = cases()[-1]
    without, with_ = (laws.one_node(siblings.recursive, p, q, 3, replace)[1] for replace in (False, True))
    assert without > plain.optimal_transport(p, q, 3) > with_


@pytest.mark.parametrize("name", ["recursive", "kseq"])
def test_equal_laws_always_accept_and_disjoint_ones_never(name, x64):
    p, q = cases()[5]
    assert abs(laws.one_node(siblings.RULES[name], p, q, 2, True)[1] - 1) < ROUNDING
    p, q = cases()[4]
    assert laws.one_node(siblings.RULES[name], p, q, 2, True)[1] == 0


def test_children_are_accepted_as_often_as_they_are_drawn(x64):
    for p, _ in cases():
        for drafts in ([0], [1, 3], [3, 0, 2], [2, 2, 1]):
            found = siblings.children(jnp.asarray(p), None, jnp.asarray(drafts), jnp.ones(len(drafts), bool))
            law, kept = laws.mix(
                np.asarray(found.accept)[None], np.asarray(found.rest)[None], np.array([drafts]), np.ones(1)
            )
            assert laws.total_variation(law, p) < ROUNDING
            assert abs(kept - p[sorted(set(drafts))].sum()) < ROUNDING


def test_greedy_takes_the_likeliest(x64):
    p = jnp.asarray([0.2, 0.5, 0.3])
    found = siblings.greedy(p, None, jnp.asarray([2, 1, 1]), jnp.asarray([True, True, False]))
    assert found.accept.tolist() == [0, 1, 0] and found.rest.tolist() == [0, 1, 0]
    missing = siblings.greedy(p, None, jnp.asarray([1]), jnp.asarray([False]))
    assert missing.accept.tolist() == [0] and missing.rest.tolist() == [0, 1, 0]


def test_typical_acceptance_is_its_threshold_and_is_not_lossless(x64):
    p = np.array([0.45, 0.3, 0.2, 0.04, 0.01])
    entropy = -sum(x * np.log(x + 1e-5) for x in p)
    threshold = min(0.3, 0.09 * np.exp(-entropy))
    assert abs(float(siblings.typical_threshold(p)) - threshold) < ROUNDING and 0.01 < threshold < 0.04
    exact = float(siblings.typical_threshold(p, offset=0))
    assert abs(exact - min(0.3, 0.09 * np.exp(-sum(-x * np.log(x) for x in p)))) < ROUNDING
    peaked = np.array([0.999, 0.001])
    assert abs(float(siblings.typical_threshold(peaked)) - 0.09 * np.exp(sum(peaked * np.log(peaked + 1e-5)))) < 1e-13
    assert float(siblings.typical_threshold(peaked, epsilon=0.05)) == 0.05
    found = siblings.typical(jnp.asarray(p), None, jnp.asarray([4, 3, 1]), jnp.ones(3, bool))
    assert found.accept.tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.rest, [0.45 / 0.99, 0.3 / 0.99, 0.2 / 0.99, 0.04 / 0.99, 0], atol=ROUNDING)
    law, _ = laws.one_node(siblings.typical, p, np.full(5, 0.2), 1, True)
    assert laws.total_variation(law, p) > 0.1


def test_without_replacement_takes_earlier_drafts_out(x64):
    q = np.array([0.5, 0.25, 0.25, 0])
    rows = np.asarray(siblings.without_replacement(jnp.asarray(q), [1, 0, 2, 3]))
    wanted = [q, [2 / 3, 0, 1 / 3, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=ROUNDING)
    for drafts, _, rows in laws.drawn(q, 3, False):
        np.testing.assert_allclose(siblings.without_replacement(jnp.asarray(q), drafts), rows, atol=ROUNDING)


def test_a_draft_that_its_law_forbids_does_not_stay(x64):
    p, q = jnp.asarray([0.7, 0.3]), jnp.asarray([[1.0, 0.0]])
    for rule in (siblings.recursive, siblings.kseq):
        assert rule(p, q, jnp.asarray([1]), jnp.asarray([True])).accept.tolist() == [0]


def test_rules_map_over_nodes(x64):
    p, q = (jnp.asarray(np.stack(each)) for each in zip(*cases()[:3], strict=True))
    drafts, valid = jnp.asarray([[0, 1], [2, 2], [4, 3]]), jnp.asarray([[True, True], [True, False], [False, False]])
    both = jnp.broadcast_to(q[:, None], (3, 2, 5))
    for rule in siblings.RULES.values():
        many = jax.vmap(rule)(p, both, drafts, valid)
        for i in range(3):
            one = rule(p[i], both[i], drafts[i], valid[i])
            np.testing.assert_allclose(many.accept[i], one.accept, atol=ROUNDING)
            np.testing.assert_allclose(many.rest[i], one.rest, atol=ROUNDING)
        assert many.accept[2].tolist() == [0, 0]
