"""Claim: a prompt need not pass the later half of the layers, if these are distilled to read an early one (SwiftKV).

    python main.py --mode=claim --config=configs/claims/swiftkv.py --workdir=runs/claims/swiftkv

Qiao et al. 2024, arXiv:2410.03960: prompts cost half, caches are smaller by as much as layers share them, and the loss
in quality after distillation is small (1 to 2 points).

A Transformer of four layers learns the bytes of code; it is rewired so that layers 3 and 4 read what leaves layer 2,
with a cache each (`half`) and with one for both (`shared`), and their queries, keys and values are distilled.

Expect, as seen: a model of four layers loses 0.07 bits per byte by rewiring (a figure that differs so much between
seeds that three do not decide it) and 0.006 after distillation; a shared cache costs 0.01 more. A prompt's program is
what the formula says.
Cost: 3 teachers of 400 steps, 6 students of 200.
"""

from configs.claims import small
from configs.swiftkv import TRAINED

HALF = {"model.kind": "swiftkv", "model.swiftkv.layer": 2}


def get_claim():
    """The claim, for the check `rewiring`."""
    config = small(400, log_every=100, rows=128, width=64)
    config.model.num_layers = 4
    distil = {"objective": "swiftkv", "optimizer.freeze": TRAINED, "train.steps": 200}
    row = lambda better, worse, statement, published: {  # noqa: E731
        "statement": statement, "published": published, "better": better, "worse": worse
    }  # fmt: skip
    return {
        "source": "Qiao et al. 2024, arXiv:2410.03960",
        "family": "decoding",
        "check": "rewiring",
        "statement": "Prompts need not pass the later layers",
        "published": "prefill compute -50%, KV memory -62.5% (two layers a cache, 8 bits), small loss of quality",
        "base": config,
        "arms": {"half": HALF, "shared": HALF | {"model.swiftkv.share": 2}},
        "distil": distil,
        "prompt": 128,
        "cheaper": {
            "statement": "A prompt's compiled pass has the FLOPs of the first layers and of the later ones' keys",
            "published": "prefill compute -50% with half of the layers",
        },
        "contrasts": [
            row("half", "half untrained", "Distillation brings back what rewiring costs", "needed for all models"),
            row("half", "teacher", "Distilled, half of the layers for a prompt lose nothing", "1 to 2 points lost"),
            row("shared", "half", "Two layers that share a cache are as good as two caches", "about 1 point lost"),
        ],
        "effect": 0.05,
        "control": {
            "says": "bits per byte of the teacher",
            "reads": ("bits_per_byte", "teacher"),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }
