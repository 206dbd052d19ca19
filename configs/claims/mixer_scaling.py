"""Claim: the loss of attention falls faster with compute than that of LaCT, and than that of the gated delta rule.

    python main.py --mode=claim --config=configs/claims/mixer_scaling.py --workdir=runs/claims/mixer_scaling --jobs=1

Tay et al. 2022, "Scaling Laws vs Model Architectures" (arXiv:2207.10551, introduction): amongst ten architectures the
vanilla Transformer has the best scaling behaviour, and linear-time attention such as Performer struggles with scaling
up. Shen et al. 2024, "Scaling Laws for Linear Complexity Language Models" (arXiv:2406.16690, abstract): three of these
scale like a Transformer, from 70M to 7B parameters. Neither has LaCT (Zhang et al. 2025, arXiv:2505.23884) or the gated
delta rule (Yang et al. 2024, arXiv:2412.06464).

Here: bytes of the standard library's source in rows of 128, two layers of width 16, 32 and 48, heads of 16 in every
mixer, 10 tokens a parameter, so that model and data grow together; LaCT with a window and chunks of 32. Of each mixer
and seed the exponent is the slope of log loss in the log of training FLOPs over the three sizes: the mean of -d log
loss / d log FLOPs over the range tried, not the exponent of a law with a limit, which three sizes cannot tell. The runs
of one seed read the same batches. Every mixer has the same search of rates at width 32, on other held-out rows; other
widths have that rate times (32 / D)^1/2, the rule of the first study (configs/sweeps/scaling.py): LaCT's inner rates
have no rule under mup.

An effect is 0.01 of exponent: over ten times the compute a loss that is 2.3% lower. The control: every mixer's loss
falls with compute, by an exponent of 0.03 or more.

Expect, as seen with eight seeds: exponents of 0.098 with attention, 0.095 with LaCT and 0.119 with the gated delta
rule. Attention's is behind the gated delta rule's with each seed, by 0.004 to 0.030; less LaCT's it is 0.003, between
-0.008 and 0.030 by seed, which stays open: 29 seeds would tell. Three seeds had left both rows open; the look at eight
was added after these were seen. The loss falls faster from width 32 to 48 (0.089 to 0.155 by run) than from 16 to 32
(0.058 to 0.119), so that these are means of a bent curve, and the ranges of FLOPs differ: a run of the two memories
costs 1.5 to 2 times one of attention. With 1.2 nats taken off (E of the first study) attention is behind the gated
delta rule by 0.062, three times as far, and level with LaCT. At every width the gated delta rule ends below attention,
by 0.10 to 0.20 nats in the mean; at equal FLOPs, read off the lines between widths, by less. The search took 1e-2 for
attention and the gated delta rule, 3e-2 for LaCT, which hardly told them apart: the lower and the upper of its two
rates. Cost: six runs of the search and nine a seed, some 4 CPU minutes; the last five seeds took 18 minutes of CPU
time.
"""

from configs.claims import small

WIDTHS, TUNED, HEAD = (16, 32, 48), 32, 16
MIXERS = {
    "attention": {"model.mixer": "attention"},
    "LaCT": {
        "model.mixer": "lact", "model.lact.chunk_size": 32, "model.lact.window": 32,
        "model.lact.heads": TUNED // HEAD, "model.lact.rank": HEAD // 2,
    },
    "gated delta": {"model.mixer": "gated_delta", "model.gated_delta.conv": 4},
}  # fmt: skip
PUBLISHED = (
    "the vanilla Transformer scales best of ten (Tay et al., introduction), three linear mixers scale like it (Shen et "
    "al., abstract); neither has "
)


def get_claim():
    """The claim, for the check `exponents`."""
    config = small(330, log_every=50, rows=640, width=TUNED)
    config.data.batch_size = 8
    config.model.update({"init": "fan_in", "num_heads": TUNED // HEAD})
    return {
        "statement": "The loss of attention falls by a larger exponent with compute than that of fixed-size memories",
        "source": "Tay et al. 2022, arXiv:2207.10551; Shen et al. 2024, arXiv:2406.16690",
        "published": "see pairs",
        "family": "scaling",
        "check": "exponents",
        "score": "loss",
        "base": config,
        "arms": MIXERS,
        "sizes": {f"width {D}": _size(D) for D in WIDTHS},
        "tokens_per_parameter": 10,
        "tune": {"optimizer.learning_rate": (1e-2, 3e-2)},
        "pairs": [
            {
                "statement": f"With compute the loss of attention falls by a larger exponent than that of {said}",
                "published": f"{PUBLISHED}{said}",
                "better": "attention", "worse": arm,
            }
            for arm, said in (("LaCT", "LaCT"), ("gated delta", "the gated delta rule"))
        ],
        "effect": 0.01,
        "control": {"says": "the smallest exponent of any mixer", "reads": ("lowest",), "least": 0.03},
        "looks": (3, 8),
        "hours": 1.0,
        "seeds": range(8),
    }  # fmt: skip


def _size(width: int) -> dict:
    """The settings of a width; its rate follows from the one that a mixer has at TUNED."""
    return {
        "model.width": width,
        "model.num_heads": width // HEAD,
        "model.lact.heads": width // HEAD,
        "optimizer.learning_rate": lambda c: c.optimizer.learning_rate * (TUNED / c.model.width) ** 0.5,
    }
