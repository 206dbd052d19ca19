"""Every policy's kept tokens, scores and outputs at every step, against caches that really drop (tests/plain/cache.py).

Tolerance: one step is sums of at most 30 terms of order 10, so 30 * 2^-53 * 10 a sum; scores add up 30 of them, merged
keys pass on their error through exp: 1e-11 is far above all, and far below any difference of a rule.
"""

import numpy as np
import pytest

from models.mixers.memory.replay import replay
from models.mixers.memory.rules import RULES
from tests.plain import cache, cache_merging

T, N, K, H, PROMPT = 30, 4, 2, 8, 16
CASES = {  # id: (policy, options, plain form, its options)
    "full": ("full", {}, cache.Full, {}),
    "h2o": ("h2o", {}, cache.H2O, {}),
    "h2o-share": ("h2o", {"budget": 0.5, "recent": 0.2}, cache.H2O, {"budget": 8, "recent": 3}),
    "h2o-roomy": ("h2o", {"budget": 20}, cache.H2O, {"budget": 20}),
    "h2o-released": ("h2o", {"released": True}, cache.MaskedH2O, {}),
    "h2o-released-roomy": ("h2o", {"released": True, "budget": 20}, cache.MaskedH2O, {"budget": 20}),
    "a2sf": ("a2sf", {"alpha": 0.7}, cache.H2O, {"alpha": 0.7}),
    "a2sf-last": ("a2sf", {"alpha": 0.0}, cache.H2O, {"alpha": 0.0}),
    "a2sf-released": ("a2sf", {"alpha": 0.7, "released": True}, cache.A2SFReleased, {"alpha": 0.7}),
    "keyformer": ("keyformer", {"seed": 5}, cache.Keyformer, {"seed": 5}),
    "keyformer-frozen": ("keyformer", {"frozen_keys": True}, cache.Keyformer, {"frozen": True}),
    "keyformer-plain": ("keyformer", {"noise": False, "end": 3.0}, cache.Keyformer, {"noisy": False, "end": 3.0}),
    "scissorhands": ("scissorhands", {"window": 4}, cache.Scissorhands, {}),
    "scissorhands-bulk": ("scissorhands", {"window": 40, "drop": 3}, cache.Scissorhands, {"window": 40, "bulk": 3}),
    "tova": ("tova", {"recent": 0}, cache.Tova, {"recent": 0}),
    "snap": ("snap", {"window": 3}, cache.Snap, {}),
    "snap-max": ("snap", {"window": 4, "kernel": 3, "pooling": "max"}, cache.Snap, {"window": 4, "kernel": 3, "kind":
    "max"}),
    "snap-roomy": ("snap", {"window": 3, "budget": 16}, cache.Snap, {"budget": 16}),
    "pyramid": ("pyramid", {"window": 3, "layer": 1, "layers": 4}, cache.Pyramid, {}),
    "streaming": ("streaming", {"sinks": 2, "theta": 100.0}, cache.Streaming, {"sinks": 2, "theta": 100.0, "ranked":
    True}),
    "streaming-before": (
        "streaming", {"sinks": 1, "theta": 100.0, "evict": "before"},
        cache.Streaming, {"sinks": 1, "theta": 100.0, "ranked": True, "when": "before"},
    ),
    "random": ("random", {"seed": 3}, cache.Random, {"seed": 3}),
    "prefix_kv": ("prefix_kv", {"sinks": 2, "distance": -3}, cache_merging.PrefixKV, {"sinks": 2, "distance": -3}),
    "prefix_kv-middle": ("prefix_kv", {"ratio": 0.25, "sinks": 1}, cache_merging.PrefixKV, {"ratio": 0.25, "sinks": 1}),
    "elastic": ("elastic", {"sinks": 2, "distance": -3}, cache_merging.Elastic, {"sinks": 2, "distance": -3}),
    "elastic-values": (
        "elastic", {"sinks": 2, "distance": -3, "values_only": True},
        cache_merging.Elastic, {"sinks": 2, "distance": -3, "values_only": True},
    ),
    "elastic-released": (
        "elastic", {"sinks": 2, "distance": -3, "released": True, "ratio": 0.25},
        cache_merging.ElasticReleased, {"sinks": 2, "distance": -3, "ratio": 0.25},
    ),
    "ems": ("ems", {"window": 3, "least": 0.1}, cache_merging.EMS, {"least": 0.1}),
    "ems-strict": ("ems", {"window": 3, "least": 0.99}, cache_merging.EMS, {"least": 0.99}),
}  # fmt: skip
OWN_BUDGET = {"full", "prefix_kv", "elastic"}
NO_RECENT = OWN_BUDGET | {"snap", "pyramid", "streaming"}


def stream(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, N, H)) * 2, rng.normal(size=(T, K, H)), rng.normal(size=(T, K, H))


def options_of(policy, options):
    base = {} if policy in OWN_BUDGET else {"budget": 8}
    return base | ({} if policy in NO_RECENT else {"recent": 3}) | options


@pytest.mark.parametrize("name", CASES)
def test_a_policy_is_the_plain_one_at_every_step(name):
    policy, options, kind, plain = CASES[name]
    q, k, v = stream()
    if "theta" not in options:  # every policy can be given unrotated keys, too
        options, plain = options | {"theta": 50.0}, plain | {"theta": 50.0}
    found = replay(policy, q, k, v, prompt=PROMPT, **options_of(policy, options))
    wanted = cache.replayed(kind, q, k, v, PROMPT, **plain)
    assert len(found.kept) == len(wanted) == T - PROMPT + 1
    for record, (kept, score, out) in enumerate(wanted):
        for h in range(K):
            row = found.kept[record, h]
            assert list(row[row >= 0]) == kept[h], (record, h)
            assert (row[len(kept[h]) :] == -1).all()
            np.testing.assert_allclose(found.scores[record, h][: len(kept[h])], score[h], atol=1e-11)
        np.testing.assert_allclose(found.outputs[record], out, atol=1e-11, err_msg=str(record))


SELECTIONS = {
    "oracle": ({"budget": 5}, cache_merging.Oracle, {"budget": 5}),
    "token_select": (
        {"budget": 4, "initial": 2, "local": 3}, cache_merging.TokenSelect, {"budget": 4, "initial": 2, "local": 3},
    ),
    "token_select-theta": (
        {"budget": 4, "initial": 2, "local": 3, "theta": 50.0},
        cache_merging.TokenSelect, {"budget": 4, "initial": 2, "local": 3, "theta": 50.0},
    ),
    "token_select-released": (
        {"budget": 4, "initial": 2, "local": 3, "released": True, "smooth": 3},
        cache_merging.TokenSelect, {"budget": 4, "initial": 2, "local": 3, "released": True, "smooth": 3},
    ),
    "token_select-small": (
        {"budget": 10, "initial": 4, "local": 6}, cache_merging.TokenSelect, {"budget": 10, "initial": 4, "local": 6},
    ),
    "quest": ({"budget": 6, "page": 3, "least": 1}, cache_merging.Quest, {"budget": 6, "least": 1}),
    "quest-least": ({"budget": 6, "page": 3, "least": 4}, cache_merging.Quest, {"budget": 6, "least": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_the_plain_one_at_every_step(name):
    options, kind, plain = SELECTIONS[name]
    q, k, v = stream(1)
    found = replay(name.split("-")[0], q, k, v, prompt=PROMPT, **options)
    for record, (chosen, out) in enumerate(kind(q, k, v, PROMPT, **plain).run(), start=1):
        held = found.kept[record]
        for a in range(N):
            row = held[a * len(held) // N]
            assert list(row[row >= 0]) == chosen[a], record
        np.testing.assert_allclose(found.outputs[record], out, atol=1e-11)


def test_a_selection_is_used_again_while_the_query_is_alike():
    q, k, v = stream(2)
    q[PROMPT:] = q[PROMPT] + 0.01 * q[PROMPT:]  # nearly one query
    kw = {"prompt": PROMPT, "budget": 4, "initial": 2, "local": 3}
    again, fresh = (replay("token_select", q, k, v, least=least, **kw) for least in (0.9, 1.0))
    chosen = [set(row[row >= 2]) - set(range(t - 2, t + 1)) for t, row in enumerate(again.kept[1:, 0], start=PROMPT)]
    assert all(now == chosen[0] for now in chosen)
    assert (again.kept[1] == fresh.kept[1]).all() and len(chosen[0]) == 4
    unlike = replay("token_select", *stream(2), least=0.9, **kw)
    assert (unlike.kept == replay("token_select", *stream(2), **kw).kept).all()  # cosines of drawn queries are small


@pytest.mark.parametrize("policy", RULES)
def test_a_budget_of_the_whole_text_is_full_attention(policy):
    q, k, v = stream(3)
    whole = {"prefix_kv": {"ratio": 0.0}, "elastic": {"ratio": 0.0}, "full": {}}.get(policy, {"budget": T})
    got = replay(policy, q, k, v, prompt=PROMPT, theta=50.0, **whole)
    want = replay("full", q, k, v, prompt=PROMPT, theta=50.0)
    np.testing.assert_allclose(got.outputs, want.outputs, atol=1e-12)


def test_float32_stays_float32_and_what_cannot_be_is_told():
    q, k, v = (x.astype(np.float32) for x in stream())
    assert replay("h2o", q, k, v, prompt=4, budget=3, recent=1).outputs.dtype == np.float32
    with pytest.raises(ValueError, match="policy='h20' is unknown; use one of full, streaming, h2o"):
        replay("h20", q, k, v, prompt=4)
    with pytest.raises(ValueError, match="alpha is no option of h2o; it has budget"):
        replay("h2o", q, k, v, prompt=4, alpha=1.0)
    with pytest.raises(ValueError, match="prompt=31 is not within the 30 tokens; use 15"):
        replay("h2o", q, k, v, prompt=31)
    with pytest.raises(ValueError, match="evict='never' is unknown"):
        replay("streaming", q, k, v, prompt=4, evict="never")
