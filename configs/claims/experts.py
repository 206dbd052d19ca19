"""Claim: at the FLOPs of a dense model experts learn more, and the kind of router and of balance decides how much.

    python main.py --mode=claim --config=configs/claims/experts.py --workdir=runs/claims/experts --jobs=2

Qiu et al. 2025 (arXiv:2501.11873): balance over the global batch beats that over micro-batches, perplexity 8.038
against 8.167 (3.4B, 120B tokens). MoE++ (arXiv:2410.07348), AdaMoE (arXiv:2406.13233), BlockFFN (arXiv:2507.08771) and
Pangu's MoGE (arXiv:2505.21411) say that fewer experts a token, experts of each token's own number, or one in every
group do no harm.
Here: bytes of the standard library's source, two layers of width 64, eight experts of which a token has two; the same
steps, batches and learning rate for all. The control is a dense model of the same FLOPs a token: where
that is not worse, none of the other rows says anything.

Expect: what the run says. Cost: 24 runs of 600 steps of 16 x 128 bytes; not run yet.
"""

from configs import moe
from configs.claims import small

EXPERTS = {"model.channel": "moe"}
NAMES = {"global": "tiny", "micro": "micro", "moe++": "moepp", "adamoe": "adamoe", "moge": "moge", "bias": "aux_free"}


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(600, log_every=20, rows=640)
    arms = {"dense": {"model.channel": "swiglu", "model.swiglu.hidden": 2 * 96}}
    arms |= {name: _changes(preset) for name, preset in NAMES.items()}
    arms["blockffn"] = _changes("blockffn") | {"model.moe.hidden": 16}
    arms["moge"] |= {"model.moe.hidden": 48}
    return {
        "statement": "At the FLOPs of a dense model experts learn more, by the kind of router and balance",
        "source": "Qiu et al. 2025, arXiv:2501.11873; Jin et al. 2024, arXiv:2410.07348",
        "published": "perplexity 8.038 with global balance, 8.167 with that of micro-batches",
        "check": "contrast",
        "score": "bits_per_byte",
        "base": config,
        "arms": arms,
        "pairs": [
            _pair(
                "Control: eight experts, two for a token, beat one layer as wide as two",
                "global",
                "dense",
                "all papers",
            ),
            _pair("Balance over the batch beats balance within an eighth of it", "global", "micro", "8.038, 8.167"),
            _pair("Experts that cost nothing among the choices help (MoE++)", "moe++", "global", "ARC-E 47.6 to 50.1"),
            _pair("Null experts, two true ones a token in the mean, help (AdaMoE)", "adamoe", "global", "ARC-C +1.69"),
            _pair("One of each of four groups, half as wide, beats two of any (MoGE)", "moge", "global", "on a par"),
            _pair("A bias of the choice beats a balance loss (aux-loss-free)", "bias", "global", "8.521, 8.038"),
            _pair(
                "Small experts, as many as a token likes, beat two large (BlockFFN)",
                "blockffn",
                "global",
                "14.88, 16.22",
            ),
        ],
        "seeds": (0, 1, 2),
    }


def _changes(preset: str) -> dict:
    """What makes the model of a preset of configs/moe.py, its experts as wide as a token's two are cheap."""
    made = {f"model.moe.{key}": value for key, value in moe.PRESETS[preset].changes.items()}
    return EXPERTS | {"model.moe.hidden": 96} | made


def _pair(statement: str, better: str, worse: str, published: str) -> dict:
    return {"statement": statement, "published": published, "better": better, "worse": worse}
