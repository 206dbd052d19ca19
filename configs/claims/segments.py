"""Claim: models that cut their bytes into segments, and one of BPE, beside a model of bytes at equal FLOPs.
"""

from configs import segments
from configs.claims import small

STEPS = 300  # of the model of bytes
NGRAM = 3.0
NAMES = ("stride", "words", "hat", "magnet", "hnet", "entropy", "mrt5")


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(STEPS, log_every=50, rows=256)
    config.model.update({"num_layers": 4, "init": "fan_in"})
    config.data.update({"length": 256, "batch_size": 4})
    config.optimizer.name = "muon"
    arms = {
        "bytes": {},
        "bpe": {"data.tokenizer": "bpe", "data.vocab_size": 512, "model.width": 96, "data.length": 112},
        **{name: _segmented(name) for name in NAMES},
    }
    return {
        "statement": "s",
        "source": "s",
        "published": "s",
        "family": "tokens",
        "check": "contrast",
        "score": "bits_per_byte",
        "base": config,
        "arms": arms,
        "equal_to": "bytes",
        "tune": {"optimizer.learning_rate": (7e-3, 2e-2)},
        "pairs": [{"statement": "x", "published": "y", "better": name, "worse": "bytes"} for name in arms if name != "bytes"],
        "effect": 0.28,
        "control": {"says": "bits per byte of the model of bytes", "reads": ("bits_per_byte", "bytes"), "most": NGRAM},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }


def _segmented(name: str) -> dict:
    """A layer of bytes on either side of two layers over tokens, twice as wide where they are a third of the bytes."""
    made = segments.PRESETS["words" if name == "hat" else name].changes
    made = made | {"width": 64, "heads": 4, "window": 64, "documents": 2}
    if name == "hnet":
        made |= {"least": 3}
    if name == "hat":
        made |= {"pool": "attention"}
    stack = {"model.width": 64 if made["least"] == 1 else 128, "model.num_layers": 2}
    return {"model.kind": "segmented"} | stack | {f"model.segmented.{key}": value for key, value in made.items()}
