"""Speculation in the engine: verifiers by rules, drafters as parts, what is said of them."""

from tests.planted import Bug

VERIFY, DRAFTS, TESTS = "models/decoding/verify", "models/decoding/drafts", "tests/models/decoding"
RULES, GREEDY = (f"{TESTS}/verify/rules_test.py",), (f"{TESTS}/drafts/greedy_test.py",)
TREE, SIDES = (f"{TESTS}/drafts/model_tree_test.py",), (f"{TESTS}/drafts/sides_test.py",)
SAID = ("tests/experiments/generation/drafting_test.py",)

BUGS = (
    Bug(
        "the token behind the drafts has the numbers of the one before it",
        f"{VERIFY}/rules.py",
        "last = key_scheme.fold(keys, position + 1 + count, key_scheme.RESIDUAL)",
        "last = key_scheme.fold(keys, position + count, key_scheme.RESIDUAL)",
        (f"{RULES[0]}::test_numbers_are_of_the_request_the_position_and_the_purpose",),
    ),
    Bug(
        "drafts are judged by the numbers that drew them",
        f"{VERIFY}/rules.py",
        "at, key_scheme.ACCEPT), (width,), p.dtype",
        "at, key_scheme.TOKEN), (width,), p.dtype",
        (f"{RULES[0]}::test_numbers_are_of_the_request_the_position_and_the_purpose",),
    ),
    Bug(
        "all rows are judged by the laws of the first node",
        f"{VERIFY}/walk.py",
        "        found = rule(p[node], laws[at], token[at], valid)",
        "        found = rule(p[0], laws[at], token[at], valid)",
        (f"{RULES[0]}::test_the_law_of_a_round_is_the_target_s",),
    ),
    Bug(
        "the law behind a rejection is the target's",
        f"{VERIFY}/walk.py",
        "law = jnp.where(going & ~some, found.rest, law)",
        "law = jnp.where(going & ~some, p[node], law)",
        (f"{RULES[0]}::test_the_law_of_a_round_is_the_target_s",),
    ),
    Bug(
        "k-SEQ takes children that differ",
        f"{VERIFY}/rules.py",
        "    independent = True\n",
        "    independent = False\n",
        (f"{SAID[0]}::test_what_cannot_be_is_said_in_one_sentence",),
    ),
    Bug(
        "children that a tree says are drawn are the likeliest",
        f"{DRAFTS}/model_tree.py",
        "logs + noise, K)[1]",
        "logs, K)[1]",
        (f"{RULES[0]}::test_what_rounds_of_the_engine_write_has_the_law",),
    ),
    Bug(
        "a slot is worth what its parent is",
        f"{DRAFTS}/model_tree.py",
        "return value[..., None] * before",
        "return value[..., None] * jnp.ones_like(before)",
        (f"{TREE[0]}::test_dyspec_fills_the_slots_of_largest_value",),
    ),
    Bug(
        "children of a level hang on the beam before",
        f"{DRAFTS}/model_tree.py",
        "first - M + index // K",
        "first - M + index % K",
        (f"{TREE[0]}::test_each_node_of_a_model_s_tree_has_the_law_behind_its_own_path",),
    ),
    Bug(
        "parents are counted in the order of scores",
        f"{DRAFTS}/model_tree.py",
        "index[:, None, :] < old[:, :, None]",
        "index[:, None, :] <= old[:, :, None]",
        (f"{TREE[0]}::test_the_best_nodes_keep_their_parents",),
    ),
    Bug(
        "a level is read at the position of the last token",
        f"{DRAFTS}/model_tree.py",
        "self.p.length[:, None] + depths(parent), -1)",
        "self.p.length[:, None] + depths(parent) - 1, -1)",
        (f"{TREE[0]}::test_a_tree_of_a_model_with_a_cache_is_that_of_its_whole_forward_pass",),
    ),
    Bug(
        "recycling learns from nodes that were not read",
        f"{DRAFTS}/recycling.py",
        'matrix, valid = side["matrix"], seen.position >= 0',
        'matrix, valid = side["matrix"], seen.tree.valid | True',
        (f"{SIDES[0]}::test_recycling_learns_nothing_from_nodes_that_were_not_read",),
    ),
    Bug(
        "what is ruled out takes a place in the matrix",
        f"{DRAFTS}/recycling.py",
        "kept = jnp.where(jnp.isfinite(best), index, matrix[token])",
        "kept = index",
        (f"{SIDES[0]}::test_what_is_ruled_out_takes_no_place_in_the_matrix",),
    ),
    Bug(
        "a request asked anew writes on",
        f"{DRAFTS}/lookahead.py",
        "if name in self.rows and self.rows[name].seen > len(own):",
        "if name in self.rows and self.rows[name].seen < len(own) - 99:",
        (f"{SIDES[0]}::test_the_end_of_an_output_is_taken_in_when_its_request_is_asked_anew",),
    ),
    Bug(
        "prompts stay in the trie",
        f"{DRAFTS}/lookahead.py",
        "        row.trie.close(row.number)\n",
        "",
        (f"{SIDES[0]}::test_requests_that_end_leave_their_outputs_and_not_their_prompts",),
    ),
    Bug(
        "heads read the feature of the last draft that was read",
        f"{DRAFTS}/ahead.py",
        "jnp.maximum(seen.count - 1, 0)[:, None]",
        "jnp.maximum(seen.count, 0)[:, None]",
        (f"{GREEDY[0]}::test_heads_keep_the_feature_of_the_last_token_that_stays",),
    ),
    Bug(
        "the first draft comes from the head of the next token but one",
        f"{DRAFTS}/ahead.py",
        'model.heads[f"ahead_{depth + 1}"]',
        'model.heads[f"ahead_{min(depth + 2, 4)}"]',
        (f"{GREEDY[0]}::test_heads_of_tokens_ahead_draft_from_the_token_before_the_last_one",),
    ),
    Bug(
        "a round of n tokens counts as one of n + 1",
        "models/decoding/stream.py",
        "wrote=p.wrote + (jnp.arange(1, drafter.depth + 1) == count[:, None]),",
        "wrote=p.wrote + (jnp.arange(drafter.depth) == count[:, None]),",
        (f"{SIDES[0]}::test_recycling_keeps_the_successors_of_every_node",),
    ),
    Bug(
        "acceptance is of all rounds, not of those that came so far",
        "experiments/generation/drafted.py",
        "reached[1:] / reached[:-1]",
        "reached[1:] / reached[0]",
        (f"{SAID[0]}::test_the_line_and_its_numbers_by_hand",),
    ),
)
