"""Verifiers by rules: what a round of the engine writes has the target's law, by integrals over its random numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base
from models.decoding import keys as key_scheme
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import Tree
from models.decoding.verify import VERIFIERS, laws, rules, same_draw, siblings
from tests.models.decoding.tables import Headed, Table
from tests.plain import verify as plain

V, START = 3, 1
RNG = np.random.default_rng(5)
TARGET, DRAFT = RNG.dirichlet(np.full(V, 0.7), V), RNG.dirichlet(np.full(V, 1.5), V)
DEFAULTS = base.get_config().generate.to_dict() | {"temperature": 1.0}
# A probability is a sum of at most 3^6 trees x 6^4 cells of products of fewer than 20 numbers, each within 2^-53.
ROUNDING = 20 * 3**6 * 6**4 * 2.0**-53


def parents(widths):
    """Parents of the tree with widths[d] children per node of depth d, level by level."""
    parent, level = [-1], [0]
    for width in widths:
        above = np.repeat(level, width).tolist()
        level = list(range(len(parent), len(parent) + len(above)))
        parent += above
    return np.array(parent)


def trees(widths, replace, there=lambda above, token: True):
    """Every tree of drafts: (tokens `[M, N]`, laws `[M, N, V]`, weight `[M]`); -1 where no token was left to draw, or
    where a token that was drawn is not `there`."""
    parent = parents(widths)
    found = [([START] + [0] * (len(parent) - 1), np.zeros((len(parent), V)), 1.0)]
    for node in range(len(parent)):
        kids = np.flatnonzero(parent == node)
        if not len(kids):
            continue
        more = []
        for token, q, weight in found:
            above = token[node]
            ways = [((-1,) * len(kids), 1.0, np.zeros((len(kids), V)))]
            if above >= 0:
                ways = laws.drawn(DRAFT[above], len(kids), replace)
            for drafts, chance, each in ways:
                token_, q_ = list(token), q.copy()
                for kid, x, law in zip(kids, drafts, each, strict=True):
                    token_[kid], q_[kid] = x if x >= 0 and there(above, x) else -1, law
                more.append((token_, q_, weight * chance))
        found = more
    return tuple(np.array(each) for each in zip(*found, strict=True))


def chances(name, p, q, drafts):
    """Chance of each draft of one node, by loops; 0 for what is not there."""
    drafts = [x for x in drafts if x >= 0]
    out, k = [], len(drafts)
    rho = plain.smallest_rho(p, q[0], k) if name == "kseq" and k else 1
    for i, x in enumerate(drafts):
        law = np.eye(V)[x] if name == "children" else q[i]
        out.append(min(1.0, p[x] / (rho * law[x])) if law[x] else 0.0)
        if name != "kseq":
            left = np.maximum(p - law, 0)
            p = left / left.sum() if left.sum() > 1e-15 else p
    return out


def cells(edges):
    """(a number inside, length) of the intervals that `edges` cut [0, 1) into."""
    edges = np.unique([0.0, 1.0, *np.clip(edges, 0, 1)])
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(edges) if b - a > 1e-14]


def law_of_two_tokens(name, widths, replace, q_of=lambda token, q: q, there=lambda above, token: True):
    """Law `[V, V]` of the first two tokens: all trees, and of each all numbers up to where a decision changes."""
    parent, rule = parents(widths), VERIFIERS[name].rule
    depth = np.array([len(laws_path(parent, i)) for i in range(len(parent))])
    D, K = len(widths), max(widths)
    rows = []
    for token, q, weight in zip(*trees(widths, replace, there), strict=True):
        edges = [[[] for _ in range(K)] for _ in range(D)]
        for node in range(len(parent)):
            kids = np.flatnonzero(parent == node)
            if token[node] >= 0 and len(kids):
                found = chances(name, TARGET[token[node]], q_of(token, q)[kids], token[kids])
                for k, value in enumerate(found):
                    edges[depth[node]][k].append(value)
        boxes = [cells(edges[d][k]) for d in range(D) for k in range(K)]
        for box in itertools.product(*boxes):
            numbers, lengths = zip(*box, strict=True)
            rows.append((token, q_of(token, q), np.reshape(numbers, (D, K)), weight * np.prod(lengths)))
    token, q, uniform, weight = (np.array(each) for each in zip(*rows, strict=True))

    @jax.jit
    def judged(token, q, uniform):
        tree = Tree(jnp.maximum(token, 0), jnp.asarray(parent)[None], q, token >= 0)
        return rules.judge(rule, jnp.asarray(TARGET)[jnp.maximum(token, 0)], tree, uniform, K)

    path, count, last = map(np.asarray, judged(token, q, uniform))
    law = np.zeros((V, V))
    for way, n, rest, tokens, mass in zip(path, count, last, token, weight, strict=True):
        if n >= 2:
            law[tokens[way[0]], tokens[way[1]]] += mass
        elif n == 1:
            law[tokens[way[0]]] += mass * rest
        else:  # The second token is another round's, whose first token has the target's law: shown by widths of one.
            law += mass * rest[:, None] * TARGET
    return law


def laws_path(parent, node):
    return [] if parent[node] < 0 else [node, *laws_path(parent, parent[node])]


CASES = [
    ("token", (1,), True), ("token", (1, 1), True), ("recursive", (2,), True), ("recursive", (3,), False),
    ("recursive", (2, 1), False), ("recursive", (2, 2), True), ("recursive", (2, 2), False),
    ("kseq", (1, 1), True), ("kseq", (3,), True), ("kseq", (2, 1), True),
    ("children", (2,), False), ("children", (2, 1), False), ("children", (1, 2), True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "widths", "replace"), CASES)
def test_the_law_of_a_round_is_the_target_s(name, widths, replace, x64):
    found = law_of_two_tokens(name, widths, replace)
    assert abs(found.sum() - 1) < ROUNDING
    assert laws.total_variation(found, TARGET[START][:, None] * TARGET) < ROUNDING


def test_drafts_that_are_not_what_their_law_says_are_seen(x64):
    """k-SEQ with drafts that differ; laws of other nodes; typical acceptance."""
    wanted = TARGET[START][:, None] * TARGET
    turned = lambda token, q: np.roll(q, 1, axis=-1)  # noqa: E731
    assert laws.total_variation(law_of_two_tokens("recursive", (2, 1), True, turned), wanted) > 0.02
    assert laws.total_variation(law_of_two_tokens("kseq", (2,), False), wanted) > 1e-3
    p, q = (jnp.asarray(table[START]) for table in (TARGET, DRAFT))
    law, _ = laws.one_node(siblings.typical, p, q, 2, True)
    assert laws.total_variation(law, p) > 0.02 and not VERIFIERS["typical"].exact


def test_drafts_end_where_the_draft_s_law_is_unsure_and_not_where_a_drawn_token_is_unlikely(x64):
    """A threshold that some laws reach: the target's law. The same of the drawn token's own chance: another law."""
    wanted = TARGET[START][:, None] * TARGET
    bar = np.sort(DRAFT.max(axis=1))[1]
    sure = lambda above, token: DRAFT[above].max() >= bar  # noqa: E731
    assert len({sure(above, 0) for above in range(V)}) == 2
    for widths in ((1, 1), (1,)):
        assert laws.total_variation(law_of_two_tokens("token", widths, True, there=sure), wanted) < ROUNDING
    likely = lambda above, token: DRAFT[above, token] >= 0.3  # noqa: E731
    assert laws.total_variation(law_of_two_tokens("token", (1, 1), True, there=likely), wanted) > 0.02


@pytest.mark.parametrize("name", ["token", "recursive", "kseq", "children", "typical"])
def test_numbers_are_of_the_request_the_position_and_the_purpose(name, x64):
    """60 rows of random laws, as loops over the same numbers say: whatever the row, whatever stands beside it."""
    rng, B, parent = np.random.default_rng(1), 60, np.array([-1, 0, 0, 1, 1, 2])
    parent = np.arange(6) - 1 if name == "token" else parent
    depth = 6 if name == "token" else 3
    K = 7 - depth
    keys, position = jax.random.split(jax.random.key(0), B), rng.integers(3, 9, B)
    logits, token = rng.normal(size=(B, 6, 5)) * 2, rng.integers(0, 5, (B, 6))
    q = rng.dirichlet(np.ones(5), (B, 6))
    q[:, [2, 4]] = q[:, [1, 3]] if name == "kseq" else q[:, [2, 4]]
    valid = np.ones((B, 6), bool)
    valid[::3, 4:] = False
    part = VERIFIERS[name](0.3, 0.09) if name == "typical" else VERIFIERS[name]()
    tree = Tree(jnp.asarray(token), jnp.asarray(parent)[None], jnp.asarray(q), jnp.asarray(valid))
    found = jax.jit(lambda *a: part(*a, depth))(keys, jnp.asarray(logits), tree, jnp.asarray(position))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counts, rule = set(), jax.jit(siblings.RULES["recursive" if name == "token" else name])
    for b in range(B):
        fold = lambda at, purpose, b=b: jax.random.fold_in(jax.random.fold_in(keys[b], at), purpose)  # noqa: E731
        node, path = 0, [0]
        while True:
            kids = [i for i in range(6) if parent[i] == node and valid[b, i]]
            at = int(position[b]) + len(path)
            uniform = np.asarray(jax.random.uniform(fold(at, key_scheme.ACCEPT), (K,), jnp.float64))
            drafts, law = (np.array([*token[b, kids], *[0] * (K - len(kids))]), p[b, node])
            there = np.arange(K) < len(kids)
            laws_ = np.concatenate([q[b, kids].reshape(-1, 5), np.zeros((K - len(kids), 5))])
            said = rule(jnp.asarray(law), jnp.asarray(laws_), jnp.asarray(drafts), jnp.asarray(there))
            stays = np.flatnonzero(there & (uniform < np.asarray(said.accept)))
            if len(stays) == 0 or len(path) == depth:
                noise = key_scheme.gumbel(fold(at, key_scheme.RESIDUAL), (5,), jnp.float64)
                with np.errstate(divide="ignore"):
                    last = int(np.argmax(np.log(np.asarray(said.rest)) + np.asarray(noise)))
                break
            node = kids[stays[0]]
            path.append(node)
        assert found.path[b, : len(path)].tolist() == path and int(found.count[b]) == len(path)
        assert int(found.next[b]) == last
        counts.add(len(path))
    assert counts >= {1, 2, 3}


N = 60_000


@functools.cache
def written(verifier, drafter, options, seed=0, length=3):
    """Texts `[N, 1 + length]` that the engine writes behind START with a table as its model, and calls."""
    asked = DEFAULTS | {"drafter": drafter, "verifier": verifier, drafter: dict(options)}
    parts = sockets.make([asked], DEFAULTS)

    @jax.jit
    def go(key):
        small = Table(jnp.log(DRAFT))
        model = Headed(jnp.log(TARGET), jnp.log(DRAFT)) if drafter == "eagle" else Table(jnp.log(TARGET))
        models = {"model": model, "model_draft.workdir": small, "model_tree.workdir": small}
        keys = jax.vmap(jax.random.key_data)(jax.random.split(key, N))
        text = jnp.full((N, 1 + length), START)
        dials = sockets.dials([asked], parts)
        dials = {name: jnp.repeat(jnp.asarray(value), N) for name, value in dials.items()}
        ones = jnp.ones((N,), jnp.int32)
        p = stream.begin(models, parts, text, ones, ones + length, keys, dials)
        p = stream.extend(models, p, parts, length)
        return p.text[:, : 1 + length], p.calls

    return tuple(map(np.asarray, go(jax.random.key(seed))))


def far(texts):
    """p-value of the chi-square test of three tokens against the target's chain."""
    counts = np.bincount(texts[:, 1] * V * V + texts[:, 2] * V + texts[:, 3], minlength=V**3)
    wanted = (TARGET[START][:, None, None] * TARGET[:, :, None] * TARGET[None]).reshape(-1)
    return stats.chisquare(counts, wanted * N).pvalue


MODEL = {"workdir": "w", "length": 2}
TREE = {"workdir": "w", "size": 4, "levels": 2, "width": 2, "beam": 2, "independent_draws": False, "template": ""}
TREE_OF_A_HEAD = {name: value for name, value in TREE.items() if name != "workdir"} | {"length": 1}
RUNS = {
    "token": ("token", "model_draft", MODEL),
    "recursive, chain": ("recursive", "model_draft", MODEL),
    "kseq, chain": ("kseq", "model_draft", MODEL),
    "children, chain": ("children", "model_draft", MODEL),
    "token, random": ("token", "random", {"length": 2}),
    "children, random": ("children", "random", {"length": 2}),
    "recursive, dyspec": ("recursive", "model_tree", TREE | {"builder": "dyspec"}),
    "recursive, template": ("recursive", "model_tree", TREE | {"builder": "template", "template": "2x2"}),
    "kseq": ("kseq", "model_tree", TREE | {"builder": "template", "template": "3x1", "independent_draws": True}),
    "children, eagle2": ("children", "model_tree", TREE | {"builder": "eagle2"}),
    "recursive, a head's dyspec": ("recursive", "eagle", TREE_OF_A_HEAD | {"builder": "dyspec"}),
    "same_draw, dyspec": ("same_draw", "model_tree", TREE | {"builder": "dyspec"}),
}


@pytest.mark.parametrize("run", RUNS)
def test_what_rounds_of_the_engine_write_has_the_law(run):
    """60,000 requests of three tokens, drafts of another chain: chi-square at 1e-4.

    A law 0.02 away in total variation has a statistic of at least 4 n 0.02^2 = 96 on average, where 1e-4 of 26 degrees
    lies at 63: the statistic's deviation there is below 2 sqrt(96 + 13) = 21.
    """
    verifier, drafter, options = RUNS[run]
    texts, calls = written(verifier, drafter, tuple(options.items()))
    assert far(texts) > 1e-4
    assert calls.mean() < 2.9  # Drafts stay.


def test_a_rule_that_changes_the_law_is_seen_by_the_same_count():
    texts, _ = written("typical", "model_draft", tuple(MODEL.items()))
    assert far(texts) < 1e-4
    cold = [DEFAULTS | {"verifier": "typical", "temperature": 0.0}]
    assert sockets.make(cold, DEFAULTS).verifier == VERIFIERS["greedy"]()


def test_a_walk_stays_with_drafts_that_are_there_and_were_drawn():
    """Against a plain walk, node by node: an id that is drawn and stands in a node that is not there is no draft."""
    rng, B, N = np.random.default_rng(0), 50, 7
    parent = np.array([[-1, *(rng.integers(0, node) for node in range(1, N))] for _ in range(B)])
    token, drawn = rng.integers(0, 3, (2, B, N))
    valid = rng.random((B, N)) < 0.6
    found = jax.tree.map(np.asarray, jax.jit(same_draw.follow, static_argnums=4)(token, parent, valid, drawn, N))
    for b in range(B):
        path = [0]
        while True:
            children = np.flatnonzero((parent[b] == path[-1]) & valid[b])
            right = [n for n in children.tolist() if token[b, n] == drawn[b, path[-1]]]
            if not right:
                break
            path.append(right[0])
        assert found.count[b] == len(path) and found.path[b, : len(path)].tolist() == path
        assert found.next[b] == drawn[b, path[-1]]
    assert found.count.max() >= 3


def test_a_draft_is_drawn_with_the_bits_of_the_token_that_it_is_to_be():
    """A draft behind a text of n tokens takes the bits of place n (drafts/model.py); the last token stands at n - 1."""
    request, length = key_scheme.row_keys(jax.random.key(0), 8), jnp.arange(1, 9)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 50)))
    draft = VERIFIERS["same_draw"]().draw(key_scheme.fold(request, length, key_scheme.TOKEN), logits)
    found = same_draw.drawn_at(request, logits[:, None], length[:, None] - 1)
    np.testing.assert_array_equal(found[:, 0], draft)
