"""Drafters and their bench: trees of a head, drafts that end, tries on the host, what a round takes beyond passes."""

from tests.planted import Bug

DRAFTS, TESTS = "models/decoding/drafts", "tests/models/decoding/drafts"
HEAD = ("tests/models/objectives/eagle_test.py::test_a_tree_of_the_head_is_eagle_2_s_on_the_host",)
UNSURE = (f"{TESTS}/greedy_test.py::test_layers_that_are_unsure_draft_no_further",)
BENCH = ("tests/experiments/bench/speculation_test.py",)
TREE, SIDES, TRIE = f"{TESTS}/model_tree_test.py", (f"{TESTS}/sides_test.py",), (f"{TESTS}/trie_test.py",)
LENGTHS = ("tests/experiments/generation/draft_length_test.py",)

BUGS = (
    Bug(
        "bench of drafts: a tree's draft is read like a chain's",
        "experiments/bench/rounds.py",
        "return (drafter.depth, *(drafter.beam * i for i in range(1, drafter.levels)))",
        "return (2, *(drafter.beam * i for i in range(1, drafter.levels)))",
        BENCH,
    ),
    Bug(
        "bench of drafts: passes of the draft model count as machinery",
        "experiments/bench/rounds.py",
        "if not read:",
        "if True:",
        BENCH,
    ),
    Bug(
        "bench of drafts: what is beyond the passes is told in rounds",
        "experiments/bench/rounds.py",
        "(each[:, 0] - each[:, 1]) / each[:, 2]",
        "(each[:, 0] - each[:, 1]) / each[:, 1]",
        BENCH,
    ),
    Bug(
        "bench of drafts: a pass alone keeps all that it reads",
        "experiments/bench/rounds.py",
        'state["slots"].append(place[:, :1])',
        'state["slots"].append(place)',
        BENCH,
    ),
    Bug(
        "bench of drafts: the target's pass goes on from the one before, not from the draft's",
        "experiments/bench/rounds.py",
        "token, state = _pass(large, jnp.broadcast_to(last, (len(last), nodes)), state, parents)",
        "token, state = _pass(large, jnp.broadcast_to(token[:, :1], (len(last), nodes)), state, parents)",
        BENCH,
    ),
    Bug(
        "bench of drafts: the draft of a pair keeps all its drafts",
        "experiments/bench/rounds.py",
        'after["slots"] = slots.append(slots.length[:, None])',
        "pass",
        BENCH,
    ),
    Bug(
        "eagle: a node of a tree is read beside the feature of the last token",
        f"{DRAFTS}/eagle.py",
        "1 + parent[..., None]",
        "0 * parent[..., None]",
        HEAD,
    ),
    Bug(
        "eagle: drafts of a tree stand at the position of the last token",
        f"{DRAFTS}/eagle.py",
        "self.p.length[:, None] + depths(parent), -1)",
        "self.p.length[:, None] + depths(parent) - 1, -1)",
        HEAD,
    ),
    Bug(
        "eagle: the nodes of a tree are read as a chain",
        f"{DRAFTS}/eagle.py",
        "read_on(self.model, self.state, token, before, place, parent)",
        "read_on(self.model, self.state, token, before, place)",
        HEAD,
    ),
    Bug(
        "eagle: what stays of a tree has the features of its first nodes",
        f"{DRAFTS}/eagle.py",
        "features = jnp.take_along_axis(seen.made.features, at[..., None], axis=1)",
        "features = seen.made.features[:, : self.depth]",
        HEAD,
    ),
    Bug(
        "eagle: the first nodes of a tree are taken for those that stay",
        f"{DRAFTS}/eagle.py",
        "at = jnp.where(jnp.arange(self.depth) < seen.count[:, None], seen.path, 0)",
        "at = jnp.broadcast_to(jnp.arange(self.depth), seen.path.shape)",
        HEAD,
    ),
    Bug(
        "trees by level: what is read behind the text has no slots of its own",
        f"{DRAFTS}/by_level.py",
        "max(0, self.beam * (self.levels - 1) - self.size)",
        "0",
        (f"{TREE}::test_nodes_that_are_read_have_slots_behind_the_longest_text",),
    ),
    Bug(
        "exit: a draft behind one that was unsure is there",
        f"{DRAFTS}/model.py",
        "there = there & (jnp.max",
        "there = (jnp.max",
        UNSURE,
    ),
    Bug(
        "exit: rows that are sure end where another one is not",
        f"{DRAFTS}/model.py",
        "jnp.any(carry[1].valid[:, carry[0]] & p.live)",
        "jnp.all(carry[1].valid[:, carry[0]] | ~p.live)",
        UNSURE,
    ),
    Bug(
        "exit: drafts are read a place too far behind",
        f"{DRAFTS}/model.py",
        "jnp.where(p.live, p.length + i - 1, -1)[:, None], jnp.take",
        "jnp.where(p.live, p.length + i, -1)[:, None], jnp.take",
        UNSURE,
    ),
    Bug(
        "trie: the rarest nodes are looked at first",
        f"{DRAFTS}/trie.py",
        "(-count[2], next(order), count, child)",
        "(count[2], next(order), count, child)",
        TRIE,
    ),
    Bug(
        "trie: the token before the last one is looked up",
        f"{DRAFTS}/lookahead.py",
        "asked[b, max(length - options.last, 0) : length].tolist()",
        "asked[b, max(length - options.last - 1, 0) : length - 1].tolist()",
        SIDES,
    ),
    Bug(
        "lengths of drafts: they are told when the prompt is shown",
        "experiments/generation/requests.py",
        "options = generator.settled(params, prompts, options)",
        "pass",
        LENGTHS,
    ),
    Bug(
        "lookup: the last words stood at their own place",
        f"{DRAFTS}/lookup.py",
        "(at < (length - 1)[:, None])",
        "(at < length[:, None])",
        (f"{TESTS}/lookup_test.py",),
    ),
    Bug(
        "lookup: the oldest place",
        f"{DRAFTS}/lookup.py",
        "newest = jnp.max(jnp.where(place, at + 1, 0), axis=1)",
        "newest = jnp.where(place.any(1), jnp.argmax(place, axis=1) + 1, 0)",
        (f"{TESTS}/lookup_test.py",),
    ),
)
