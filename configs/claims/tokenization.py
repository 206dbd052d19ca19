"""Claim: transformers fail on k-th order Markov sources character by character, and learn them with a tokenizer.

    python main.py --mode=claim --config=configs/claims/tokenization.py --workdir=runs/claims/tokenization --jobs=2

Rajaraman et al. 2024, "Toward a Theory of Tokenization in LLMs" (arXiv:2404.08335): on simple k-th order sources with
k > 1, transformers without tokenization are very slow to learn, or fail, and predict by frequencies; with tokenization
they come near the entropy rate. The source here is theirs in kind: the character k = 2 places back returns with
probability 0.9, so that frequencies alone say nothing: 1 bit a character against an entropy rate of 0.469.
Arms: bytes, and BPE of 24 merges, at equal steps and batch (a token holds several characters, so the tokens arm also
reads more text). Rotary positions, which the paper's models did not have, may well break the claim here.

Expect: what the run says. Cost: six runs of 800 steps of 8 x 128 tokens; planned for 4 minutes with --jobs=2.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `tokenization`."""
    config = small(800, log_every=20, every=50, rows=640, save=200)
    config.data.batch_size = 8
    return {
        "statement": "A transformer learns a 2nd-order Markov source from BPE tokens and not from characters",
        "source": "Rajaraman et al. 2024, arXiv:2404.08335",
        "published": "characters stay at the unigram loss, tokens come near the entropy rate",
        "family": "order and format of data",
        "check": "tokenization",
        "source_settings": {"order": 2, "symbols": 2, "kind": "switching", "flip": 0.1},
        "documents": 1000,
        "document_length": 4096,
        "base": config,
        "arms": {
            "characters": {"data.tokenizer": "bytes"},
            "tokens": {"data.tokenizer": "bpe", "data.vocab_size": 283},
        },
        "learned": 0.5,
        "seeds": (0, 1, 2),
    }
