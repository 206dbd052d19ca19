"""Claim: identities that the parts of the house stand on hold to rounding.

    python main.py --mode=claim --config=configs/claims/laws.py --workdir=runs/claims/laws

Each row is a law of `experiments.claims.laws`, tried in float64 against a plain form that shares no code with the part.
The same table is a test.

Expect: every one exact. Cost: 10 CPU seconds; nothing is trained.
"""

LAWS = (
    "control.budget",
    "control.constraint",
    "control.guided",
    "control.nested",
    "control.unordered",
    "control.verified",
    "decoding.any_subset",
    "diffusion.schedule_free_bound",
    "drafts.best_first",
    "drafts.expected_tokens",
    "drafts.gaussians",
    "drafts.kseq",
    "drafts.pearl",
    "drafts.realignment",
    "drafts.recursive",
    "drafts.sequoia",
    "growth.parameter_tokens",
    "mixers.delta_rule_chunks",
    "parallel.ring_bytes",
    "parallel.token_ring_bytes",
    "scaling.compute_optimal",
    "scaling.overtraining",
    "tokenizers.blocks",
    "tokenizers.byte_law",
    "tokenizers.dictionaries",
    "tokenizers.digit_groups",
    "tokenizers.words_mass",
)


def get_claim():
    """The claim, for the check `law`."""
    return {
        "statement": "Identities that the parts of the house stand on hold to rounding",
        "source": "the papers named under published",
        "published": "exact",
        "family": "laws",
        "check": "law",
        "laws": LAWS,
    }
