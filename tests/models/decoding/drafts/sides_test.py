"""What drafters keep of a request: recycling's matrix and the tries, as loops over what was read say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import Seen, Tree, lookahead, recycling, templates
from models.decoding.drafts.trie import OUTPUT, Trie
from tests.models.decoding.tables import Table

V = 7
LOGITS = np.random.default_rng(0).normal(size=(V, V)) * 2
DEFAULTS = base.get_config().generate.to_dict() | {"temperature": 0.0}
STARTS, END = (0, 3), 24


def by_loops(shared):
    """Texts and matrices after each row has END tokens: nodes level by level, then rows of all nodes, the last wins."""
    tree = templates.named("3x2x1")
    matrices = [np.zeros((V, 3), int) for _ in STARTS]
    if shared:
        matrices = [matrices[0]] * len(STARTS)
    texts, history = [[start] for start in STARTS], []
    while any(len(text) < END for text in texts):
        drafts = []
        for text, matrix in zip(texts, matrices, strict=True):
            token = [text[-1]]
            for i in range(1, len(tree.parent)):
                token.append(int(matrix[token[tree.parent[i]], tree.rank[i]]))
            drafts.append(token)
        going = [len(text) < END for text in texts]
        for text, matrix, token, on in zip(texts, matrices, drafts, going, strict=True):
            room = END - len(text) - 1
            for i, x in enumerate(token):
                if on and tree.depth[i] <= room:
                    matrix[x] = np.argsort(-LOGITS[x], kind="stable")[:3]
            node = 0
            while on:
                best = int(np.argmax(LOGITS[token[node]]))
                text.append(best)
                kids = [i for i in range(len(token)) if tree.parent[i] == node and token[i] == best]
                if not kids or tree.depth[kids[0]] > room:
                    break
                node = kids[0]
        history.append(sum(going))
    return texts, matrices, len(history)


@pytest.mark.parametrize("shared", [False, True])
def test_recycling_keeps_the_successors_of_every_node(shared):
    asked = DEFAULTS | {"drafter": "recycling", "recycling": {"template": "3x2x1", "shared": shared}}
    parts = sockets.make([asked], DEFAULTS)

    @jax.jit
    def go():
        models = {"model": Table(jnp.asarray(LOGITS, jnp.float32))}
        text, ones = jnp.tile(jnp.asarray(STARTS)[:, None], (1, END)), jnp.ones((2,), jnp.int32)
        keys = jnp.zeros((2, 2), jnp.uint32)
        p = stream.begin(models, parts, text, ones, END * ones, keys, {})
        return stream.extend(models, p, parts, 100)

    p = go()
    texts, matrices, rounds = by_loops(shared)
    assert [p.text[i, :END].tolist() for i in range(2)] == texts
    np.testing.assert_array_equal(p.side["recycling"]["matrix"], np.array(matrices))
    assert int(p.calls.max()) == rounds < END - 1
    assert (p.wrote * np.arange(1, 5)).sum(axis=1).tolist() == [END - 1] * 2
    assert p.wrote.sum(axis=1).tolist() == p.calls.tolist()


def test_what_is_ruled_out_takes_no_place_in_the_matrix():
    matrix = jnp.asarray([[1, 2, 3]] * V)
    logits = jnp.where(jnp.arange(V) == 5, 0.0, -jnp.inf)[None]
    found = recycling.refreshed(matrix, jnp.asarray([4]), logits, jnp.asarray([True]))
    assert found[4].tolist()[0] == 5 and set(found[4].tolist()) <= {5, 1, 2, 3} and len(set(found[4].tolist())) == 3
    assert found[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("shared", [False, True])
def test_recycling_learns_nothing_from_nodes_that_were_not_read(shared):
    """A table's logits do not go by the position, those of a model do: node 1 was beyond the limit of its row."""
    made = recycling.Recycling(template="2", shared=shared)
    token, position = jnp.asarray([[1, 2, 3]]), jnp.asarray([[4, -1, 5]])
    tree = Tree(token, jnp.asarray([[-1, 0, 0]]), None, jnp.ones((1, 3), bool))
    seen = Seen(tree, position, jnp.asarray(LOGITS[None, [4, 5, 6]], jnp.float32), None, None, None, None, None)
    matrix = jnp.asarray(np.arange(2 * V).reshape(1, V, 2) % V)
    found = made.observe({}, {"matrix": matrix, "age": jnp.zeros((1,), jnp.int32)}, seen)["matrix"][0]
    wanted = np.array(matrix[0])
    wanted[1], wanted[3] = np.argsort(-LOGITS[4])[:2], np.argsort(-LOGITS[6])[:2]
    np.testing.assert_array_equal(found, wanted)


def shelf(**options):
    given = DEFAULTS["trie"] | {"size": 8, "branch": 3, "output_weight": 0.5} | options
    return lookahead.Lookahead(**given).host()


def ask(made, texts, done=None, keys=None):
    n = max(map(len, texts)) + 2
    text = np.array([list(text) + [99] * (n - len(text)) for text in texts])
    keys = np.arange(2 * len(texts), dtype=np.uint32).reshape(-1, 2) if keys is None else keys
    done = np.zeros(len(texts), bool) if done is None else np.array(done)
    length = np.array([[len(text)] for text in texts])
    asked = np.concatenate([text, length, keys.view(np.int32).reshape(-1, 2), done[:, None]], axis=1)
    found = made.answers(asked.astype(np.int32))
    return found[:, 0], found[:, 1], found[:, 2] > 0


def test_the_shelf_asks_the_trie_of_prompts_and_outputs():
    """Two requests, one after another's rounds; a call that comes twice changes nothing."""
    made, trie = shelf(), Trie()
    prompts = [[1, 2, 3, 1, 2], [5, 1, 2, 6, 1]]
    for number, prompt in enumerate(prompts):
        trie.insert(prompt, 3, number)
    texts = [prompts[0] + [3, 1, 2, 3], prompts[1] + [2, 6]]
    ask(made, prompts)
    first, second = ask(made, texts), ask(made, texts)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for prompt, text in zip(prompts, texts, strict=True):
        out = text[len(prompt) - 1 :]
        for i in range(len(out) - 3):  # Windows that are whole.
            trie._count(out[i], out[i + 1 : i + 4], OUTPUT)
    for number, text in enumerate(texts):
        wanted = trie.query(text[-2:], size=8, branch=3, request=number, output_weight=0.5)
        n = len(wanted.token)
        token, parent, valid = (array[number] for array in first)
        assert token[:n].tolist() == wanted.token and parent[:n].tolist() == wanted.parent
        assert valid.sum() == n > 1


def who_counts(node):
    """Requests, or OUTPUT, that have a count in a tree."""
    here = {name for name, count in node.counts.items() if count > 0}
    return here.union(*(who_counts(child) for child in node.children.values()))


def test_requests_that_end_leave_their_outputs_and_not_their_prompts():
    made = shelf()
    ask(made, [[1, 2, 3, 4]])
    ask(made, [[1, 2, 3, 4, 7, 8, 9, 7, 8]])
    keys = np.array([[8, 8]], np.uint32)
    token, _, valid = ask(made, [[5, 7]], keys=keys)
    assert token[0, :3].tolist() == [7, 8, 9] and valid[0].sum() == 4  # 7 -> 8 -> 9 -> 7 of the first one's output.
    token, _, valid = ask(made, [[5, 7, 2]], keys=keys)
    assert valid[0].sum() == 1 and token[0, 0] == 2  # 2 -> 3 -> 4 stood in the other's prompt alone.
    assert who_counts(made.everyone.trees[7]) == {OUTPUT} and who_counts(made.everyone.trees[2]) == set()
    own = shelf(shared=False)
    ask(own, [[1, 2, 3, 4]])
    ask(own, [[1, 2, 3, 4, 7, 8, 9, 7, 8]])
    assert ask(own, [[5, 7]], keys=keys)[2][0].sum() == 1


def test_the_same_request_asked_anew_begins_anew_and_rows_that_are_done_have_no_drafts():
    made = shelf()
    ask(made, [[1, 2, 3]])
    ask(made, [[1, 2, 3, 1, 2, 3]])
    token, _, valid = ask(made, [[1, 2], [4, 5]], done=[False, True])
    assert valid[1].sum() == 1 and token[1, 0] == 5 and valid[0].sum() > 1


def test_the_end_of_an_output_is_taken_in_when_its_request_is_asked_anew():
    """3, 7, 8 is no whole window of the output: it counts once that has ended, and then alone."""
    made, prompt = shelf(), [1, 2, 3]
    ask(made, [prompt])
    assert ask(made, [[*prompt, 7, 8]])[2][0].sum() == 1
    ask(made, [prompt])
    token, _, valid = ask(made, [[*prompt, 7]])
    assert valid[0].sum() == 2 and token[0, :2].tolist() == [7, 8]


def test_trees_are_cut_to_what_a_drafter_promises():
    wide = lookahead.Found([9, 1, 2, 3, 4], [-1, 0, 0, 0, 3], (0, 0))
    cut = lookahead.few_children(wide, 2)
    assert cut.token == [9, 1, 2] and cut.parent == [-1, 0, 0]
    path = lookahead.first_path(lookahead.Found([9, 1, 2, 3, 4], [-1, 0, 1, 0, 3], (0, 0)))
    assert path.token == [9, 1, 2] and path.parent == [-1, 0, 1]
