"""A scaling study for two CPU cores: 21 runs from 33k to 2.8M parameters on bytes of the standard library's source.

    python main.py --mode=sweep --config=configs/sweeps/scaling.py --workdir=runs/scaling --jobs=2
    python main.py --mode=sweep --config=configs/sweeps/scaling.py:long --workdir=runs/scaling_long --jobs=2
    python main.py --mode=sweep --config=configs/sweeps/scaling.py:seconds --workdir=runs/scaling_seconds --jobs=2

Four compute budgets a factor of 3 apart; in each, 4 to 6 sizes from a ladder around the one expected to be best, and
the tokens that the budget leaves (Hoffmann et al. 2022, approach 2, with room for approach 3). The 15 runs of the three
smaller budgets are fitted, the 6 of the largest are predicted: 15 is three quarters of 21.

Learning rates follow 4e-3 sqrt(128 / D), the quickstart's at D = 128; batches are 8 x 128 tokens for all.
FLOPs are those of training per token (matmuls and attention, forward and backward) of `experiments.program.counting`.

Expect: beta = 0.19 +- 0.04 and no other exponent (the smallest models are best at every budget), a held-out error of
5% in the median; of `long`, the same at four times the budgets, a best size between two others at the second and the
fourth, E = 1.20 nats a byte and 2.8%: see docs/LEDGER.md.
Cost: 2.3e13 FLOPs, and starting and compiling 21 programs: 9 minutes with --jobs=2 on two idle cores, `long` 32.
`seconds` runs six tiny trials end to end: its fit means nothing.
"""

from configs import base, transformer
from configs.presets import preset as made

# L, D, N: about 33k, 68k, 115k, 250k, 476k, 830k, 1.5M and 2.8M parameters.
LADDER = ((2, 32, 1), (2, 48, 2), (2, 64, 2), (2, 96, 3), (3, 112, 4), (4, 128, 4), (4, 176, 4), (4, 240, 4))
BUDGETS = {1e11: range(0, 4), 3e11: range(0, 5), 9e11: range(1, 7), 2.7e12: range(2, 8)}  # FLOPs: rungs
LONG = {4 * flops: rungs for flops, rungs in BUDGETS.items()}
SECONDS = {2e9: range(0, 3), 4e9: range(0, 3)}
SOURCE = "Hoffmann et al. 2022, arXiv:2203.15556, approaches 2 and 3"
PRESETS = {
    "study": made(
        BUDGETS, says="A scaling study in nine minutes: 21 Transformers, four budgets, a fit and its intervals",
        source=SOURCE,
    ),
    "long": made(LONG, says="The same study at four times the budgets, in half an hour", source=SOURCE),
    "seconds": made(SECONDS, says="Six tiny runs that try the study end to end; its fit means nothing", source=SOURCE),
}  # fmt: skip


def flops_per_token(c) -> int:
    """Training FLOPs of a Transformer with F = 4D: 6 (12 L D^2 + V D), and causal attention 6 L D (T + 1)."""
    layers, width, ids = c.model.num_layers, c.model.width, 259  # bytes with bos, eos and pad
    return 6 * (12 * layers * width**2 + ids * width) + 6 * layers * width * (c.data.length + 1)


def get_sweep(preset: str = "study"):
    """The sweep of `preset`: study, long or seconds."""
    budgets = base.choose("preset", preset, PRESETS).changes
    config = transformer.get_config("tiny")
    config.data.batch_size = 8
    config.optimizer.learning_rate = 4e-3
    config.train.log_every = 50
    config.eval.update({"every": 0, "rows": 400, "sample_prompt": ""})
    study = {"laws": ("chinchilla",), "share": 0.75, "bootstrap": 400}
    if preset == "seconds":
        config.data.update({"length": 32, "max_files": 40})
        config.eval.rows = 32
        study.update({"bootstrap": 20, "share": 0.84})  # Five runs fix five parameters, and one is left.
    return {"base": config, "trials": [_trial(c, *LADDER[k]) for c in budgets for k in budgets[c]], "study": study}


def _trial(flops: float, layers: int, width: int, heads: int):
    return {
        "model.num_layers": layers,
        "model.width": width,
        "model.num_heads": heads,
        "optimizer.learning_rate": lambda c: 4e-3 * (128 / c.model.width) ** 0.5,
        "train.steps": lambda c: round(flops / flops_per_token(c) / (c.data.batch_size * c.data.length)),
        "checkpoint.every": lambda c: max(200, c.train.steps // 10),
    }
