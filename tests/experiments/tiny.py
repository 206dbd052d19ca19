"""The smallest run that is still a run: a text of its own, two narrow layers, a few steps."""

import pathlib
import random

from configs import transformer
from experiments.settings import smoke


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """Forty small documents of made-up words."""
    rng = random.Random(0)
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(50)]
    for i in range(40):
        (texts / f"{i}.txt").write_text(" ".join(rng.choices(words, k=rng.randint(20, 120))))
    return texts


def config(folder: pathlib.Path, **overrides):
    """A locked config over `corpus(folder)`; overrides are dotted keys with __ for dots."""
    made = smoke.shrink(transformer.get_config("tiny"))
    made.data.source, made.data.path = "text", str(corpus(folder))
    made.data.cache_dir = str(folder / "cache")
    made.data.max_files = 0
    made.eval.sample_prompt = ""
    for key, value in overrides.items():
        group, *rest = key.split("__")
        at = made
        for name in [group, *rest][:-1]:
            at = at[name]
        at[key.split("__")[-1]] = value
    return made.lock()
