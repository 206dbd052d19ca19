"""Claim: a TokenFormer learns text as well as a Transformer of as many parameters, in as many steps.

    python main.py --mode=claim --config=configs/claims/tokenformer_tiny.py \\
        --workdir=runs/claims/tokenformer_tiny --jobs=2

TokenFormer (Wang et al. 2024, arXiv:2410.23168, table 2): trained from scratch on the Pile, models whose linear maps
are attention to parameter tokens are on a par with Transformers of their size. Here: the `tiny` presets of both, which
have 0.393 M parameters beside the embedding, on the standard library's source; same steps, batches and learning rate.
The statement is put so that it can fail: TokenFormer's loss is lower.

Expect: what the run says. Cost: six runs of 600 steps of 8 x 128 bytes; planned for 5 minutes with --jobs=2, so
that a seed of both arms is 3.3 CPU minutes; the 23 seeds that a decision within 0.05 nats needs are 77, more than the
hour of a claim.
"""

from configs import tokenformer
from configs.claims import small

PARTS = (
    "model.projection", "model.channel", "model.norm", "model.norm_scale", "model.norm_eps", "model.final_norm",
    "model.attention.rope_fraction", "model.pattention.tokens", "model.pattention.channel_tokens",
)  # fmt: skip


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(600, log_every=20, every=100, rows=800, save=200, width=128)
    config.data.batch_size = 8
    return {
        "statement": "A tiny TokenFormer has a lower loss than a Transformer of as many parameters after as many steps",
        "source": "Wang et al. 2024, arXiv:2410.23168, table 2",
        "published": "on a par: Pile perplexity 10.45 at 150M, 8.28 at 450M",
        "family": "growth",
        "check": "contrast",
        "score": "loss",
        "base": config,
        "arms": {"tokenformer": _values(tokenformer.get_config("tiny")), "transformer": _values(config)},
        "better": "tokenformer",
        "worse": "transformer",
        "effect": 0.05,
        "control": {"says": "the Transformer's nats a byte", "reads": ("loss", "transformer"), "most": 2.5},
        "looks": (3, 6),
        "hours": 1.0,
        "seeds": tuple(range(12)),
    }


def _values(config) -> dict:
    """What makes `config` the model it is: {dotted key: value} of PARTS."""
    flat = {f"model.{key}": config.model[key] for key in config.model}
    flat |= {
        f"model.{group}.{key}": config.model[group][key]
        for group in ("attention", "pattention")
        for key in config.model[group]
    }
    return {key: flat[key] for key in PARTS}
