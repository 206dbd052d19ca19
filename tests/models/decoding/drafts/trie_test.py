"""The trie against counts of windows, by hand and by brute force."""

import collections
import itertools

import numpy as np
import pytest

from models.decoding.drafts import trie as house
from models.decoding.drafts.trie import OUTPUT, Stream, Trie, Weights, _counts, largest, released


def branches(found):
    """Every path from the root, tokens without it."""
    paths = []
    for token, parent in zip(found.token, found.parent, strict=True):
        paths.append(() if parent < 0 else (*paths[parent], token))
    return paths[1:]


def counted(texts, branch):
    """How often each (token, path behind it) came, by request."""
    counts = collections.Counter()
    for request, text in texts:
        for i in range(len(text) - 1):
            for n in range(1, branch + 1):
                if i + n < len(text):
                    counts[text[i], tuple(text[i + 1 : i + 1 + n]), request] += 1
    return counts


def test_the_counts_are_those_of_all_windows():
    rng = np.random.default_rng(0)
    texts = [(request, rng.integers(0, 4, 40).tolist()) for request in (0, 1, OUTPUT, OUTPUT)]
    made = Trie()
    for request, text in texts:
        made.insert(text, 3, request)
    found = {}

    def read(token, node, path):
        for next_, child in node.children.items():
            for request, count in child.counts.items():
                found[token, (*path, next_), request] = count
            read(token, child, (*path, next_))

    for token, tree in made.trees.items():
        read(token, tree, ())
    assert found == dict(counted(texts, 3))
    for token, tree in made.trees.items():
        assert made.sizes[token][0] == sum(1 for _ in house._nodes(tree))


def test_a_query_gives_branches_by_their_weight():
    """Behind 5: [1 2] twice in the prompt, [1 3] once there, [4 2] thrice in outputs."""
    made = Trie()
    for text, request in (([5, 1, 2], 0), ([5, 1, 2], 0), ([5, 1, 3], 0), *[([5, 4, 2], OUTPUT)] * 3):
        made.insert(text, 2, request)
    found = made.query([5], branch=2)
    assert found.token[0] == 5 and branches(found) == [(1,), (1, 2), (1, 3), (4,), (4, 2)]
    assert found.sizes == (3, 2)
    assert branches(made.query([5], branch=2, output_weight=1.0)) == [(4,), (4, 2)]
    assert branches(made.query([5], branch=1)) == [(1,), (4,)]
    assert branches(made.query([5], branch=2, request=1)) == [(4,), (4, 2)]  # Another request's prompt is not seen.
    everything = made.query([5], branch=2, request=1, least=released(0, 0))
    assert branches(everything) == [(4,), (4, 2), (1,), (1, 2), (1, 3)]  # The released rule takes it.
    assert branches(made.query([5], branch=2, size=4)) == [(1,), (1, 2), (1, 3)]
    assert branches(made.query([5], branch=0)) == [] == branches(made.query([8], branch=2))


def test_the_longer_context_wins_if_it_gives_enough():
    made = Trie()
    made.insert([1, 2, 3, 4, 5, 6], 4)
    made.insert([7, 2, 9, 9, 8], 4)
    assert branches(made.query([1, 2], branch=3)) == [(3,), (3, 4), (3, 4, 5)]
    # Behind [7 2] only three nodes are known, and a branch of 4 asks for four: all that followed 2 is taken.
    assert branches(made.query([7, 2], branch=5)) == [(3,), (3, 4), (3, 4, 5), (3, 4, 5, 6), (9,), (9, 9), (9, 9, 8)]
    assert made.query([0, 2], branch=2).token[0] == 2
    assert branches(made.query([2, 0], branch=2)) == []


def test_the_largest_weights_are_left_where_there_are_too_many():
    """Frequencies 9, 5, 3, 1 behind one token and three nodes: the root and the two most frequent."""
    made = Trie()
    for token, times in ((1, 1), (2, 9), (3, 3), (4, 5)):
        for _ in range(times):
            made.insert([0, token], 1)
    assert branches(made.query([0], size=3, branch=1)) == [(2,), (4,)]
    assert branches(made.query([0], size=3, branch=1, least=released(0, 0))) == []  # The released rule drafts nothing.
    assert branches(made.query([0], size=3, branch=1, least=released(0, 1))) == [(2,)]
    assert branches(made.query([0], size=9, branch=1, least=released(0, 0))) == [(2,), (4,), (3,), (1,)]
    assert largest(iter([(0, 0, w) for w in (3.0, 2.0, 1.0)]), 2) == (1e9, 1e9, 2.0)
    assert released(1, 0)(iter([(4, 1, 0), (2, 0, 0)]), 1) == (4, 1e9, 1e9)


def test_of_many_nodes_those_below_the_largest_are_found_without_a_look_at_all():
    """Prompts of two requests and outputs, squeezed: every number of nodes, against a walk over the whole tree."""
    rng = np.random.default_rng(0)
    made = Trie(most_outputs=1, squeeze_after=1)
    for request in (0, 1, -1, -1):
        made.insert((rng.zipf(1.3, 500) % 6).tolist(), 4, request)
    made.close(1)
    tree, weights = made.trees[0], Weights(0, 0.3)

    def walk(node):
        for child in node.children.values():
            prompt, out = child.counts.get(0, 0.0), child.counts.get(-1, 0.0)
            if prompt or out:
                yield 0.7 * prompt + 0.3 * out
                yield from walk(child)

    every = sorted(walk(tree), reverse=True)
    assert len(every) > 30
    for size in range(1, len(every)):
        assert largest(_counts(tree, weights), size)[2] == pytest.approx(every[size - 1])
    assert largest(_counts(tree, weights), len(every))[2] < 1e-9


def test_the_end_of_a_request_clears_its_prompt_and_squeezes_outputs():
    made = Trie(most_outputs=2, squeeze_after=1)
    made.insert([1, 2, 3], 2, request=4)
    for _ in range(3):
        made.insert([1, 2, 5], 2)
    made.insert([1, 6, 7], 2)
    made.close(4)
    # Prompt counts are gone; [2 5] fell from 3 to 1.5; [6 7] came once and is dropped; [2 3] had no output.
    assert branches(made.query([1], branch=2, request=4)) == [(2,), (2, 5)]
    tree = made.trees[1]
    assert tree.children[2].counts[OUTPUT] == 1.5 and 6 not in tree.children and 3 not in tree.children[2].children
    assert made.sizes[1] == [2, 2]
    made.squeeze(1)
    assert tree.children[2].counts[OUTPUT] == 0.75
    made.squeeze(1)
    assert not tree.children
    roomy = Trie(squeeze_after=1)
    roomy.insert([1, 2], 1)
    roomy.close(0)
    assert branches(roomy.query([1], branch=1)) == [(2,)]  # Small trees are left alone.


def test_outputs_in_pieces_count_what_one_piece_counts():
    text = np.random.default_rng(2).integers(0, 3, 23).tolist()
    whole, cut = Trie(), Trie()
    whole.insert(text, 4)
    stream = Stream(cut, 4)
    for a, b in itertools.pairwise((0, 1, 3, 4, 11, 23)):
        stream.insert(text[a:b])
    stream.insert([], final=True)
    for token in whole.trees:
        assert whole.trees[token] == cut.trees[token]
    assert stream.waiting == []
