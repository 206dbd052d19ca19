"""Trees that a smaller model writes in a round are those of the builders on the host, and say what they drew from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import DRAFTERS, by_level, templates, trees
from tests.models.decoding import stream_test
from tests.models.decoding.tables import Table

V = 6
LAW = np.random.default_rng(2).dirichlet(np.full(V, 0.6), V)
DEFAULTS = base.get_config().generate.to_dict() | {"temperature": 1.0}
STARTS = (0, 3, 4)


def proposed(verifier, seed=0, **options):
    """The tree behind one token a row, as numpy."""
    options = DEFAULTS["model_tree"] | {"workdir": "w"} | options
    asked = DEFAULTS | {"drafter": "model_tree", "model_tree": options, "verifier": verifier}
    asked["temperature"] = 0.0 if verifier == "greedy" else 1.0
    parts = sockets.make([asked], DEFAULTS)
    with jax.enable_x64(True):

        @jax.jit
        def go(key):
            models = {"model": Table(jnp.log(LAW)), "model_tree.workdir": Table(jnp.log(LAW))}
            keys = jax.vmap(jax.random.key_data)(jax.random.split(key, len(STARTS)))
            text = jnp.tile(jnp.asarray(STARTS)[:, None], (1, 40))
            ones = jnp.ones((len(STARTS),), jnp.int32)
            dials = sockets.dials([asked] * len(STARTS), parts)
            p = stream.begin(models, parts, text, ones, 40 * ones, keys, dials)
            return parts.drafter[1].propose(models, p, parts)[0]

        return jax.tree.map(np.asarray, go(jax.random.key(seed)))


def draft(start):
    return lambda path: LAW[path[-1] if path else start]


def paths(tree, row):
    """The tokens from the root to each valid node below it."""
    found = []
    for i in range(1, tree.token.shape[1]):
        if tree.valid[row, i]:
            path, at = [], i
            while at > 0:
                path.append(int(tree.token[row, at]))
                at = int(tree.parent[row, at])
            found.append(tuple(path[::-1]))
    return found


def test_eagle2_is_the_beam_of_the_host():
    tree = proposed("greedy", builder="eagle2", size=8, levels=3, width=3, beam=3)
    for row, start in enumerate(STARTS):
        wanted = trees.eagle2(draft(start), depth=2, top_k=3, nodes=8)
        assert tree.token[row, 1:].tolist() == wanted.token[1:].tolist()
        assert tree.parent[row].tolist() == wanted.parent.tolist() and tree.valid[row].all()
    assert tree.q is None


def of_model(verifier, **options):
    """Trees of a model that drafts for itself, rows of other lengths; law(row, path) of its whole forward pass."""
    asked = DEFAULTS | {"drafter": "model_tree", "model_tree": DEFAULTS["model_tree"] | {"workdir": "w"} | options}
    asked |= {"verifier": verifier, "temperature": 0.0 if verifier == "greedy" else 1.0}
    parts = sockets.make([asked], DEFAULTS, vocab_size=stream_test.V)
    graphdef, params = stream_test.model("attention")

    @jax.jit
    def go(params):
        model = nnx.merge(graphdef, params).for_decoding()
        models = {"model": model, "model_tree.workdir": model}
        given = (stream_test.prompts(), jnp.asarray(stream_test.LENGTH), jnp.asarray(stream_test.LIMIT))
        dials = sockets.dials([asked] * 3, parts)
        p = stream.begin(models, parts, *given, stream_test.key_data(), dials, capacity=40)
        return parts.drafter[1].propose(models, stream.read(models, p, parts, 17, fresh=True), parts)[0]

    texts = np.asarray(stream_test.prompts())

    def law(row, path):
        text, n = texts[:1].copy(), stream_test.LENGTH[row]
        text[0, : n + len(path)] = [*texts[row, :n], *path]
        logits = np.asarray(stream_test.forward("attention")(jnp.asarray(text)), np.float64)[0, n + len(path) - 1]
        return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

    return jax.tree.map(np.asarray, go(params)), law


def test_a_tree_of_a_model_with_a_cache_is_that_of_its_whole_forward_pass():
    """Each node's best children are those behind its own path, at its own position."""
    tree, law = of_model("greedy", builder="eagle2", size=8, levels=4, width=3, beam=3)
    for row in range(3):
        wanted = trees.eagle2(lambda path, row=row: law(row, path), depth=3, top_k=3, nodes=8)
        assert tree.token[row, 1:].tolist() == wanted.token[1:].tolist()
        assert tree.parent[row].tolist() == wanted.parent.tolist()


def test_each_node_of_a_model_s_tree_has_the_law_behind_its_own_path():
    """All that were scored, in float32: behind another path the laws of this model are off by more than 1 %."""
    tree, law = of_model("recursive", builder="dyspec", size=21, levels=3, width=3, beam=3)
    for row in range(3):
        path = {0: ()}
        for i in range(1, 22):
            above = int(tree.parent[row, i])
            wanted = law(row, path[above])
            for j in range(1, i):
                if tree.parent[row, j] == above:
                    wanted[tree.token[row, j]] = 0
            np.testing.assert_allclose(tree.q[row, i], wanted / wanted.sum(), rtol=1e-3, atol=1e-6)
            path[i] = (*path[above], int(tree.token[row, i]))
        assert max(map(len, path.values())) == 3 and sum(len(each) == 3 for each in path.values()) == 9


def test_certain_choices_hold_the_largest_path_products():
    tree = proposed("greedy", builder="dyspec", size=10, levels=5, width=V, beam=8)
    for row, start in enumerate(STARTS):
        grown = trees.best_first(draft(start), 10)
        wanted = set()
        for i in range(1, 11):
            path, at = [], i
            while at > 0:
                path.append(int(grown.token[at]))
                at = grown.parent[at]
            wanted.add(tuple(path[::-1]))
        assert max(map(len, wanted)) <= 5 and set(paths(tree, row)) == wanted


@pytest.mark.parametrize("seed", [0, 1])
def test_dyspec_fills_the_slots_of_largest_value(seed):
    """Against the tree of all slots that were scored: values by loops, of what was really drawn."""
    shape = {"builder": "dyspec", "levels": 3, "width": 3, "beam": 3}
    every, some = (proposed("recursive", seed, size=size, **shape) for size in (3 + 9 + 9, 7))
    for row, start in enumerate(STARTS):
        value, slot = {(): 1.0}, {}
        order = paths(every, row)
        for above in sorted({path[:-1] for path in order}, key=len):
            left, law = value[above], draft(start)(above).copy()
            for path in (path for path in order if path[:-1] == above):
                slot[path] = left
                chance = law[path[-1]]
                value[path] = left * chance
                left *= 1 - chance
                law[path[-1]] = 0
                law = law / law.sum()
        wanted = sorted(slot, key=lambda path: -slot[path])[:7]
        assert set(paths(some, row)) == set(wanted)


@pytest.mark.parametrize("builder", ["dyspec", "template"])
def test_a_node_says_the_law_that_it_was_drawn_from(builder):
    tree = proposed("recursive", builder=builder, size=9, levels=3, width=3, beam=2, template="3x2x1")
    for row, start in enumerate(STARTS):
        for i in range(1, tree.token.shape[1]):
            above = int(tree.parent[row, i])
            law = LAW[start if above == 0 else tree.token[row, above]].copy()
            for j in range(1, i):
                if tree.parent[row, j] == above:
                    law[tree.token[row, j]] = 0
            np.testing.assert_allclose(tree.q[row, i], law / law.sum(), rtol=1e-5)


def test_independent_children_are_drawn_from_the_law_itself():
    options = {"builder": "template", "template": "4x1", "independent_draws": True}
    found = [proposed("kseq", seed, **options) for seed in range(3)]
    for tree, (row, start) in itertools.product(found, enumerate(STARTS)):
        np.testing.assert_allclose(tree.q[row, 1:5], np.tile(LAW[start], (4, 1)), rtol=1e-5)
    assert any(len(set(tree.token[0, 1:5].tolist())) < 4 for tree in found)


def test_nodes_that_are_read_have_slots_behind_the_longest_text():
    """Three of each of three levels are read, of which five stay in the tree: four slots more than the engine gives."""
    options = DEFAULTS["model_tree"] | {"workdir": "w", "builder": "dyspec", "size": 5, "levels": 4, "beam": 3}
    for changes, more in ({}, 4), ({"size": 9}, 0), ({"builder": "template"}, 0):
        made = DRAFTERS["model_tree"](**options | changes)
        side = made.init({"model_tree.workdir": Table(jnp.log(LAW))}, 2, 10)
        assert side["slots"].position.shape == (2, 10 + more)


def test_names_of_templates():
    tree = templates.named("3x2")
    assert tree.parent.tolist() == [-1, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert tree.rank.tolist() == [0, 0, 1, 2, 0, 1, 0, 1, 0, 1]
    assert len(templates.named("recycling").parent) == 81 and len(templates.named("medusa").parent) == 64
    assert templates.is_chain(templates.named("1x1x1")) and not templates.is_chain(tree)
    best = templates.named("sequoia:5:3:0.9,0.05")
    assert len(best.parent) == 5 and best.depth.max() == 2
    for wrong in ("", "3xa", "0x1", "sequoia:4", "oak"):
        with pytest.raises(ValueError, match="names no tree of drafts; use recycling"):
            templates.named(wrong)


def test_the_best_nodes_keep_their_parents():
    priority = jnp.asarray([[0.9, 0.5, 0.5, 0.8, 0.0, 0.5]])
    index, place, valid = by_level.best_nodes(priority, jnp.asarray([[0, 0, 1, 1, 2, 4]]), 4)
    assert index.tolist() == [[0, 1, 2, 3]] and place.tolist() == [[0, 0, 1, 1]] and valid.all()
    assert not by_level.best_nodes(priority, jnp.asarray([[0, 0, 1, 1, 2, 4]]), 6)[2][0, 4]
