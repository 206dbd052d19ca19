"""Check: on a Markov source of known entropy rate, a model of tokens learns what a model of characters does not.

The claim has `source_settings` (of `data.tasks.Markov`), `documents` and `document_length` (characters), `base`, `arms`
("characters" and "tokens"), `seeds`, and `learned`: the share of the way from knowing frequencies only (0) to the
entropy rate (1) from which the source counts as learned.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.tasks import Markov
from experiments import workdir as files
from experiments.claims import arms, method
from experiments.claims.evidence import DOES_NOT, HOLDS, UNDECIDED, Evidence, Judged

TEXTS = "texts"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Writes the source as text, trains both arms with every seed, and places their bits per character on the way."""
    source, seeds = Markov(**claim["source_settings"]), claim["seeds"]
    source.check()
    folder = write(source, workdir / TEXTS, claim["documents"], claim["document_length"])
    base = claim["base"].copy_and_resolve_references().unlock()
    base.data.source, base.data.path = "text", str(folder)
    found = arms.train(base, claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    rate, chance = source.best_loss / math.log(2), source.chance_loss / math.log(2)
    bits = {arm: [row["eval/bits_per_byte"] for row in rows] for arm, rows in found.items()}
    judged = {arm: method.judge(claim, [(chance - b) / (chance - rate) for b in bits[arm]]) for arm in bits}
    learned = {arm: each.ends for arm, each in judged.items()}
    shares = "; ".join(
        f"{arm} {np.mean(bits[arm]):.3f} bits a character, {100 * mean:.0f}% of the way "
        f"[{100 * low:.0f}, {100 * high:.0f}]"
        for arm, (mean, low, high) in learned.items()
    )
    return [
        Evidence(
            statement=claim["statement"],
            published=claim["published"],
            measured=f"{shares} (frequencies {chance:.3f}, entropy rate {rate:.3f})",
            scale=arms.scale(found, seeds),
            verdict=verdict(learned["characters"], learned["tokens"], claim["learned"]),
            numbers={
                **_widest(judged),
                "seeds": list(seeds),
                "bits": bits,
                "learned": learned,
                "rate": rate,
                "chance": chance,
            },
        )
    ]


def _widest(judged: Mapping[str, Judged]) -> dict[str, Any]:
    """The numbers of the arm that varies most: what more seeds have to narrow."""
    return max((each.numbers for each in judged.values()), key=lambda numbers: numbers.get("deviation", 0.0))


def verdict(characters: tuple, tokens: tuple, bound: float) -> str:
    """Holds where tokens learn the source and characters do not, by intervals (mean, low, high) beside `bound`."""
    if tokens[1] > bound and characters[2] < bound:
        return HOLDS
    if tokens[2] < bound or characters[1] > bound:
        return DOES_NOT
    return UNDECIDED


def write(source: Markov, folder: pathlib.Path, documents: int, length: int) -> pathlib.Path:
    """`documents` files of `length` characters a, b, ... drawn from `source`; the same text whenever it is called."""
    sequence, _ = source.sample(0, np.arange(documents), length - 1)
    letters = (sequence + ord("a")).astype(np.uint8)
    for k, document in enumerate(letters):
        path = folder / f"{k:05d}.txt"
        if not path.exists():
            files.write_file(path, document.tobytes())
    return folder
