"""Claims: one statement of one paper, re-tested at the scale at hand with seeds and intervals, and a row that says so.

A file of configs/claims has `get_claim() -> dict` with the keys `statement`, `source` (paper and place), `published`
(what it found, as it says it), `check` (a name in `CHECKS`), and what that check reads: configs, arms, seeds. How it is
decided stands in `experiments.claims.method`, how its arms are tuned in `experiments.claims.tuning`.
"""

import datetime
import importlib
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import workdir as files
from experiments.claims import method
from experiments.claims.evidence import RUNS, TUNING, UNDECIDED, stem
from experiments.settings import overrides
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest

# name: module with `run(claim, workdir, jobs, quiet) -> list[Evidence]`, and where runs need what is written before
# them, `prepare(claim, workdir) -> claim`.
CHECKS = {
    "law": "law",
    "contrast": "contrast",
    "growth": "growth",
    "tokenization": "tokenization",
    "overtraining": "overtraining",
    "assd": "assd",
    "drafts": "drafts",
    "denoising": "denoising",
    "memories": "memories",
    "rewiring": "rewiring",
    "pairs": "pairs",
    "transplants": "transplants",
    "editing": "editing",
    "serving": "serving",
    "table": "table",
    "paths": "paths",
    "leverage": "leverage",
    "curve": "curve",
    "exponents": "exponents",
    "worlds": "worlds",
    "patterns": "patterns",
    "steered": "steered",
    "scripts": "scripts",
}
FILE = "claim.json"
_NEEDED = ("statement", "source", "published", "check")


def load(path: str) -> dict[str, Any]:
    """The claim of `FILE.py` or `FILE.py:preset`. Refused where it is none."""
    claim = overrides.load(path, "get_claim", dict)
    for key in _NEEDED:
        if not isinstance(claim.get(key), str):
            raise Refused(f"--config={path}: {key}={claim.get(key)!r} must be text; see configs/claims.")
    if claim["check"] not in CHECKS:
        hint = suggest(claim["check"], CHECKS)
        raise Refused(
            f"--config={path}: check={claim['check']!r} is unknown; {hint}choose one of: {', '.join(CHECKS)}."
        )
    return claim


def run(
    claim: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    name: str,
    first_seed: int = 0,
    jobs: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs the check of a claim in `workdir` and returns what claim.json there holds.

    Every training run resumes, and a finished claim trains nothing again.

    Args:
      claim: from `load`.
      workdir: of the claim; its runs lie below.
      name: of the config file, as in the command that the record states.
      first_seed: added to every seed of the claim; the ledger keeps such a run beside that of the claim's own seeds.
      jobs: runs that train side by side.
      quiet: whether nothing is shown.
    """
    from experiments.claims import tuning

    check = importlib.import_module(f"experiments.claims.{CHECKS[claim['check']]}")
    claim = _from_seed(claim, first_seed)
    method.of(claim)  # What cannot be decided is refused before anything is trained.
    if prepare := getattr(check, "prepare", None):
        claim = prepare(claim, workdir)
    claim, tuned = tuning.tuned(claim, workdir, jobs=jobs, quiet=quiet)
    rows = _looks(check, claim, workdir, jobs=jobs, quiet=quiet)
    folder = stem(name) + (f"_from_{first_seed}" if first_seed else "")
    record = {
        "claim": name,
        "source": claim["source"],
        "command": f"python main.py --mode=claim --config=configs/claims/{name} --workdir=runs/claims/{folder} "
        + (f"--first_seed={first_seed} " if first_seed else "")
        + f"--jobs={jobs}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": _machine(),
        "rows": rows,
    }
    if tuned:
        record["tuned"] = tuned
    if first_seed:
        record["first_seed"] = first_seed
    files.write_json(workdir / FILE, record)
    return record


def _from_seed(claim: Mapping[str, Any], first_seed: int) -> Mapping[str, Any]:
    """The claim with `first_seed` added to its seeds. Refused where it has none, or shares some with its own run."""
    if not first_seed:
        return claim
    seeds = tuple(claim.get("seeds", ()))
    if not seeds:
        raise Refused(f"--first_seed={first_seed}: this claim draws nothing by seed; leave it at 0.")
    least = max(seeds) - min(seeds) + 1
    if first_seed < least:
        raise Refused(f"--first_seed={first_seed} repeats seeds of the claim's own run; use {least} or more, e.g. 100.")
    return {**claim, "seeds": tuple(seed + first_seed for seed in seeds)}


def _looks(check: Any, claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[dict]:
    """The rows of a claim, each as at the look that decided it: its verdict stays, whatever later looks show.

    A claim without a method has one look, at all its seeds.
    """
    looks = method.of(claim).looks if method.of(claim) else (len(claim.get("seeds", ())),)
    pairs = claim.get("pairs") or claim.get("contrasts") or ()
    decided: dict[int, dict] = {}
    for count, following in zip(looks, (*looks[1:], None), strict=True):
        found = check.run(method.first(claim, count), workdir, jobs=jobs, quiet=quiet)
        hours, before = hours_of(workdir, claim.get("seeds", ())[count:]), hours_of(workdir / TUNING)
        for k, row in enumerate(row.to_dict() for row in found):
            made = method.of(claim, pairs[k] if k < len(pairs) else None)
            if made is None or "deviation" not in row["numbers"]:  # an exact row of a claim that also trains
                decided.setdefault(k, row)
                continue
            more = following is not None and before + hours * following / count <= made.hours
            verdict, said, numbers = method.final(made, row, hours=hours, more=more)
            if verdict != UNDECIDED and k not in decided:
                row |= {"verdict": verdict, "measured": row["measured"] + said, "numbers": row["numbers"] | numbers}
                decided[k] = row
        if len(decided) == len(found):
            return [decided[k] for k in range(len(found))]
    raise AssertionError("the last look decides every row")


def hours_of(workdir: pathlib.Path, without: Sequence[int] = ()) -> float:
    """Hours of all finished runs of a claim, as they took them, but of those with the seeds `without`: runs of a later
    look may be there already, and are no part of what this look cost."""
    found = 0.0
    for path in workdir.glob(f"{RUNS}/*/{files.RESULT}"):
        config = (files.read_json(path.with_name(files.CONFIG)) or {}).get("config", {})
        if config.get("seed") not in without:
            found += float((files.read_json(path) or {}).get("seconds", 0.0))
    return found / 3600


def _machine() -> str:
    """What computed it, without naming the machine."""
    environment = files.environment()
    kind = environment["devices"][0]
    device = f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{len(environment['devices'])} x {kind}"
    return f"{device}, {platform.machine()}, Python {environment['python']}, jax {environment['jax']}"
