"""Claim: what routers and balances of mixtures of experts are said to gain, one statement a paper.

    python main.py --mode=claim --config=configs/claims/experts.py --workdir=runs/claims/experts

Qiu et al. 2025 (arXiv:2501.11873): balance over the global batch lets experts specialise and beats balance within
micro-batches, perplexity 8.038 against 8.167 (3.4B, 120B tokens). Jin et al. 2024 (MoE++, arXiv:2410.07348): experts
without cost among the choices, 25% of the expert time saved and better answers. Zeng et al. 2024 (AdaMoE,
arXiv:2406.13233): null experts, -14.5% FLOPs and +1.69 points. Tang et al. 2025 (MoGE, arXiv:2505.21411): one expert in
every group, an imbalance of 0 between devices. Song et al. 2025 (BlockFFN, arXiv:2507.08771): 80.5% of the experts idle
for a token and 71.4% for eight neighbours (top-k: 79.2% and 49.2%), perplexity 14.88 against 16.22.

Here: bytes of the standard library's source, two layers of width 64, the same batches and rates for all (of 3e-3 and
1e-2 the better one for `dense` and `top 2` alike, by a seed of its own). `top 2` is eight experts of which a token has
two, `dense` one SwiGLU layer as wide as two of them. `global` and `micro` have a balance loss five times as large as
the others', over the batch of 16 rows or within two rows each. `moe++, longer` has as many steps as cost the FLOPs of
`top 2`. `adamoe 2` and `adamoe 1` have as many null experts as true ones, so that 4 and 2 choices are two and one true
expert in the mean. `moge` and `top 4` have experts of half the width, four for a token. `blockffn`, `relu` (the same
without its losses) and `top 5` have 24 small experts. What an expert says of its text is the mutual information between
held-out rows of 64 bytes and experts, in nats.

The control: `top 2` beats `dense`, so that a difference between mixtures is one between things that work.

Expect, as seen: global balance lets experts say more of their text, and its bits stay open (41 seeds); MoE++ is ahead
at equal FLOPs, with 1.33 costly experts a token. AdaMoE loses 0.04 to 0.15 bits, and its tokens drift to more true
experts than two, not fewer. MoGE's imbalance is 0, top-k's 0.27. BlockFFN's chunk sparsity comes out larger than
published (0.81 of 24 experts idle for eight neighbours, 0.82 for one token: they share nearly all of theirs), and costs
0.23 bits against top-k: its coefficients are the paper's, its experts are few and its training is short.
Cost: 42 runs of 400 steps of 16 x 64 bytes; 20 minutes of runs on two busy CPU cores.
"""

from configs import moe
from configs.claims import small

STEPS, LONGER = 400, 508  # LONGER: of MoE++, for the FLOPs of `global`
FIRM = 0.05  # coefficient of the balance losses whose scopes are compared


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(STEPS, log_every=100, rows=640)
    config.data.length = 64
    config.model.init = "fan_in"
    config.optimizer.learning_rate = 1e-2
    moepp = _changes("moepp", hidden=96)
    small_ones = {"experts": 24, "hidden": 32, "gated": False}
    arms = {
        "dense": {"model.channel": "swiglu", "model.swiglu.hidden": 2 * 96},
        "top 2": _changes("tiny", hidden=96),
        "global": _changes("tiny", hidden=96, balance=FIRM),
        "micro": _changes("micro", hidden=96, balance=FIRM),
        "moe++": moepp,
        "moe++, longer": moepp | {"train.steps": LONGER},
        "adamoe 2": _changes("adamoe", hidden=96),
        "adamoe 1": _changes("adamoe", hidden=96, k=2),
        "top 1": _changes("tiny", hidden=96, k=1, router="softmax_before"),
        "moge": _changes("moge", hidden=48),
        "top 4": _changes("tiny", hidden=48, k=4, router="softmax_before"),
        "blockffn": _changes("blockffn"),
        "relu": _changes("blockffn", locality=0.0, sparsity=0.0),
        "top 5": _changes("tiny", **small_ones, k=5),
    }
    return {
        "statement": "Routers and balances of experts do what their papers say",
        "source": "Qiu et al. 2025, arXiv:2501.11873; Jin et al. 2024, arXiv:2410.07348; Zeng et al. 2024, "
        "arXiv:2406.13233; Tang et al. 2025, arXiv:2505.21411; Song et al. 2025, arXiv:2507.08771",
        "published": "perplexity 8.038 with global balance, 8.167 with that of micro-batches",
        "family": "experts",
        "check": "contrast",
        "score": "bits_per_byte",
        "base": config,
        "arms": arms,
        "reference": "dense",
        "pairs": PAIRS,
        "effect": 0.03,
        "control": {
            "says": "bits per byte that eight experts gain on a dense layer of their FLOPs",
            "reads": ("ahead", "top 2"),
            "least": 0.03,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }


def _changes(preset: str, **more) -> dict:
    """What makes the model of a preset of configs/moe.py, and `more` options of it."""
    made = moe.PRESETS[preset].changes | more
    return {"model.channel": "moe"} | {f"model.moe.{key}": value for key, value in made.items()}


def _pair(better: str, worse: str, statement: str, published: str, score: str = "", effect: float = 0.0) -> dict:
    own = {"score": score, "effect": effect} if score else {}
    return {"statement": statement, "published": published, "better": better, "worse": worse, **own}


PAIRS = [
    _pair("global", "micro", "Balance over the batch ends lower than balance within an eighth of it",
          "perplexity 8.038 and 8.167 (3.4B, 120B tokens)"),
    _pair("global", "micro", "With balance over the batch an expert says more of its text",
          "experts specialise by domain under global balance only", "specialisation", 0.01),
    _pair("moe++", "top 2", "MoE++ ends lower than two of eight at equal steps",
          "ARC-E 50.1 instead of 47.6, HellaSwag 41.8 instead of 40.3 (0.6B)"),
    _pair("moe++, longer", "top 2", "MoE++ ends lower than two of eight at equal FLOPs", "better at less compute"),
    _pair("moe++", "top 2", "A token of MoE++ has fewer experts that cost something than two",
          "60% of the expert FLOPs at tau 0.75 with 8 + 4 experts", "costly", 0.1),
    _pair("adamoe 2", "top 2", "With null experts two true ones in the mean end lower than two for each token",
          "ARC-C +1.69 points at -14.5% FLOPs"),
    _pair("adamoe 1", "top 1", "With null experts one true one in the mean ends lower than one for each token",
          "ARC-C +1.69 points at -14.5% FLOPs"),
    _pair("adamoe 2", "top 2", "Tokens of AdaMoE take fewer true experts than two in the mean",
          "2.0 experts a token become 1.67", "costly", 0.1),
    _pair("moge", "top 4", "One expert in each of four groups evens the load of four devices",
          "imbalance 0 by construction", "imbalance", 0.02),
    _pair("moge", "top 4", "One expert in each of four groups ends no higher than four of any", "on a par with top-k"),
    _pair("blockffn", "top 5", "BlockFFN ends lower than five of the same experts by top-k", "perplexity 14.88, 16.22"),
    _pair("blockffn", "top 5", "Fewer experts are active for a token of BlockFFN than five of 24",
          "token sparsity 80.5% and 79.2%", "token_sparsity", 0.03),
    _pair("blockffn", "top 5", "Eight neighbours of BlockFFN leave more experts idle than with top-k",
          "71.4% and 49.2%", "chunk_sparsity", 0.03),
    _pair("blockffn", "relu", "BlockFFN's losses make eight neighbours leave more experts idle",
          "both losses are needed for chunk sparsity", "chunk_sparsity", 0.03),
    _pair("blockffn", "relu", "BlockFFN's losses cost no bits", "perplexity 14.88, dense 14.90"),
]  # fmt: skip
