"""Claim: the smaller the blocks of block diffusion, the better its likelihood, from masked to autoregressive models.

    python main.py --mode=claim --config=configs/claims/block_sizes.py --workdir=runs/claims/block_sizes --jobs=1

Arriola et al. 2025, "Block Diffusion" (arXiv:2503.09573), perplexities of LM1B after 65B tokens, 110M parameters:
autoregressive 22.83, blocks of 4, 8 and 16 <= 28.23, 29.83 and 30.60, masked diffusion <= 31.78; of OpenWebText after
524B tokens 17.54, <= 20.73, 21.68 and 22.27, <= 22.98. In nats a token of LM1B that is 3.13, 3.34, 3.40, 3.42 and
3.46: blocks of 16 are 1.1% ahead of masked diffusion, blocks of 4 another 2.4%, and left to right another 6%. They
compare at equal tokens, and so do the first three rows here; a step of block diffusion reads its row twice, noised and
clean, and costs 1.8 times as much, so that the last row gives masked diffusion as many FLOPs as blocks of 4. Theirs
are tuned from a masked model after 850K of 1M steps; these begin from nothing.

Here: two layers of width 64 on bytes of the standard library's source, rows of 64, 500 steps of 16 rows by Muon, which
lets diffusion leave the plateau of byte frequencies (4.56 bits a byte) in so few steps: with AdamW it stood there after
400 (configs/claims/toy_likelihood.py). All diffusion arms mask a fixed count of each block, the form of the bound with
the least variance. Every bound is a mean of eight draws over 320 rows.

The control: masked diffusion has learned more than frequencies, 4 bits a byte or less. 0.05 bits matter, 1.4% of them.

Expect, as seen: 2.46 bits a byte left to right, blocks of 4 <= 3.17, blocks of 16 <= 3.51, masked <= 3.68: the
published order, with gaps about four times as wide as published, as shares of the loss. Three seeds left the step from
masked to blocks of 16 open (+0.16, but one seed's masked model ended 0.08 above the others), five decided it. With as
many FLOPs masked diffusion comes to <= 3.46, far behind blocks of 4, but ahead of blocks of 16 by 0.05 (no row: it was
not asked before). In a trial with one seed of 600 steps blocks of 1, whose loss is that of an autoregressive model, had
2.48 beside its 2.44. Cost: ten runs of the search and five a seed, 15 to 45 seconds each, 17 minutes of one core.
"""

from configs.claims import small

STEPS = 500
PAIRS = (  # better, worse, statement, published
    (
        "autoregressive", "block 4", "At equal steps an autoregressive model has a better likelihood than blocks of 4",
        "LM1B perplexity 22.83 against <= 28.23",
    ),
    (
        "block 4", "block 16", "At equal steps blocks of 4 have a better bound than blocks of 16",
        "LM1B perplexity <= 28.23 against <= 30.60",
    ),
    (
        "block 16", "masked", "At equal steps blocks of 16 have a better bound than masked diffusion",
        "LM1B perplexity <= 30.60 against <= 31.78",
    ),
    (
        "block 4", "masked, equal FLOPs", "At equal FLOPs blocks of 4 have a better bound than masked diffusion",
        "not given: compared at equal tokens only",
    ),
)  # fmt: skip


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(2 * STEPS, log_every=100, rows=320)  # About what the last arm has, whose steps follow FLOPs.
    config.model.init = "fan_in"
    config.data.update({"length": 64, "batch_size": 16})
    config.optimizer.name = "muon"
    masked = {"objective": "masked_diffusion", **_own("masked")}
    block = {"objective": "block_diffusion", **_own("block"), "train.steps": STEPS}
    return {
        "statement": "The smaller the blocks of block diffusion, the better its likelihood",
        "source": "Arriola et al. 2025, arXiv:2503.09573, tables 3 and 4",
        "published": "perplexity of LM1B rises from blocks of 4 to 16 to masked diffusion",
        "family": "objectives",
        "check": "contrast",
        "score": "bits_per_byte",
        "base": config,
        "arms": {
            "autoregressive": {"objective": "next_token", "train.steps": STEPS},
            "block 4": {**block, "block_diffusion.block": 4},
            "block 16": {**block, "block_diffusion.block": 16},
            "masked": {**masked, "train.steps": STEPS},
            "masked, equal FLOPs": masked,
        },
        "equal_to": "block 4",
        "pairs": [
            {"statement": statement, "published": published, "better": better, "worse": worse}
            for better, worse, statement, published in PAIRS
        ],
        "tune": {"optimizer.learning_rate": (1e-2, 2e-2)},
        "effect": 0.05,
        "control": {
            "says": "bits a byte of masked diffusion (byte frequencies alone: 4.56)",
            "reads": ("bits_per_byte", "masked"),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 0.9,
        "seeds": tuple(range(5)),
    }


def _own(name: str) -> dict:
    """What both kinds of diffusion share: counts of masks, and draws of an evaluation."""
    return {f"{name}_diffusion.masking": "fixed_count", f"{name}_diffusion.draws": 8}
