"""Exact laws: identities that parts of the house must satisfy, tried in float64 within seconds.

`LAWS` is one table for tests, claims and the ledger: `tests/experiments/claims/laws_test.py` runs all of it, the check
`law` writes a row of evidence for each name of a claim. A law is a function without arguments that gives a `Law`; its
docstring states it: the law first, then how it is tried, then "Source: ...".
"""

from experiments.claims.laws import control, decoding, diffusion, drafts, growth, mixers, parallel, scaling, tokenizers
from experiments.claims.laws.law import Law, stated

__all__ = ["LAWS", "Law", "stated"]

LAWS = {
    "control.budget": control.budget,
    "control.constraint": control.constraint,
    "control.guided": control.guided,
    "control.nested": control.nested,
    "control.unordered": control.unordered,
    "control.verified": control.verified,
    "decoding.any_subset": decoding.any_subset,
    "diffusion.schedule_free_bound": diffusion.schedule_free_bound,
    "drafts.best_first": drafts.best_first,
    "drafts.expected_tokens": drafts.expected_tokens,
    "drafts.gaussians": drafts.gaussians,
    "drafts.kseq": drafts.kseq,
    "drafts.pearl": drafts.pearl,
    "drafts.realignment": drafts.realignment,
    "drafts.recursive": drafts.recursive,
    "drafts.sequoia": drafts.sequoia,
    "growth.parameter_tokens": growth.parameter_tokens,
    "mixers.delta_rule_chunks": mixers.delta_rule_chunks,
    "parallel.ring_bytes": parallel.ring_bytes,
    "parallel.token_ring_bytes": parallel.token_ring_bytes,
    "scaling.compute_optimal": scaling.compute_optimal,
    "scaling.overtraining": scaling.overtraining,
    "tokenizers.blocks": tokenizers.blocks,
    "tokenizers.byte_law": tokenizers.byte_law,
    "tokenizers.dictionaries": tokenizers.dictionaries,
    "tokenizers.digit_groups": tokenizers.digit_groups,
    "tokenizers.words_mass": tokenizers.words_mass,
}
