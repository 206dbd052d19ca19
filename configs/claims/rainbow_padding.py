"""Claim: padding by one end token spoils answers the more, the longer the canvas; a cycle of pads does not.

    python main.py --mode=claim --config=configs/claims/rainbow_padding.py \\
        --workdir=runs/claims/rainbow_padding --jobs=2

Kim et al. 2025, "Rainbow Padding" (arXiv:2510.03680): instruction-tuned LLaDA falls on MATH from 17.1 to 2.9% when the
canvas grows from 128 to 256 tokens, since late places are sure of the end token and confidence decoding reveals them
first; with one end token and then seven pads in turn, 0.6 becomes 32.6% after one epoch.
Here: sums of two digits; masked diffusion of two layers, width 64, trained on canvases of 6 or 24 symbols for an answer
of one or two digits and its END, padded by END or by K pads in turn; filled in with a call for every second place, the
surest first. Answers are short whatever the canvas, so that an END at a late place is never wrong: the effect of the
paper, where long answers are cut, has less to feed on.

600 steps of 32 rows by Adam left sums half learned (23 to 81% exact), arms up to 44 points apart between seeds and all
rows open; by Muon, 800 steps of 64, an arm of each kind was learned in a pilot of one seed. Counting sequences with up
to nine numbers missing, whose answers differ more in length, were not learned on any canvas (9% on the short one).

The control: nine in ten sums are right on the short canvas.

Expect, as seen: every sum of every arm and seed is right, on both canvases and with every padding. Where answers are
learned this well padding does not matter; of answers that are cut because their length is unsure, of which the paper
speaks, these rows say nothing. Cost: 18 runs of 25 to 40 CPU seconds, 11 CPU minutes.
"""

from configs.claims import small

PADS = (1, 3, 7, 8)


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(800, log_every=100, rows=1024)
    config.model.init = "fan_in"
    config.objective = "masked_diffusion"
    config.data.update({"source": "task:arithmetic", "length": 28, "batch_size": 64})
    config.optimizer.update({"name": "muon", "learning_rate": 1e-2})
    config.eval.batch_size = 64
    config.generate.temperature = 0.0
    config.generate.diffusion.update({"method": "max_prob", "steps": 12})
    ends = {
        "end, 6": {"data.name": "digits=1, room=6", "data.length": 10, "generate.diffusion.steps": 3},
        "end, 24": {"data.name": "digits=1, room=24"},
    }
    pads = {f"{k} pads, 24": {"data.name": f"digits=1, room=24, pads={k}"} for k in PADS}
    return {
        "statement": "A canvas padded by one end token spoils answers, a cycle of pads does not",
        "source": "Kim et al. 2025, arXiv:2510.03680",
        "published": "MATH 17.1 to 2.9% from length 128 to 256; 0.6 to 32.6% with seven pads",
        "family": "decoding",
        "check": "contrast",
        "base": config,
        "arms": ends | pads,
        "pairs": [
            {
                "statement": "Padded by its end token, a masked model answers worse on a canvas four times as long",
                "published": "MATH 17.1% at length 128, 2.9% at 256",
                "better": "end, 6",
                "worse": "end, 24",
            },
            *(
                {
                    "statement": f"On a long canvas {k} pads in turn are better than the end token as padding",
                    "published": "MATH 0.6 to 32.6% with seven pads" if k == 7 else "seven pads suffice",
                    "better": f"{k} pads, 24",
                    "worse": "end, 24",
                }
                for k in PADS
            ),
        ],
        "effect": 0.1,
        "control": {"says": "answers on the short canvas, share", "reads": ("exact", "end, 6"), "least": 0.9},
        "looks": (3, 6),
        "hours": 1.0,
        "seeds": tuple(range(12)),
    }
