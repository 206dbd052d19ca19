"""Check: identities that hold exactly, each tried in float64 and set against what rounding alone can do.

The claim has `laws`, names in `experiments.claims.laws.LAWS`; each becomes a row, stated by the law's own docstring.
Nothing is trained.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.claims.evidence import DOES_NOT, EXACT, Evidence
from experiments.claims.laws import LAWS, stated
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Tries every law of the claim; writes nothing."""
    for name in claim["laws"]:
        if name not in LAWS:
            raise Refused(f"laws: {name!r} is unknown; {suggest(name, LAWS)}choose some of: {', '.join(LAWS)}.")
    return [_row(name) for name in claim["laws"]]


def _row(name: str) -> Evidence:
    law = LAWS[name]
    (statement, source), found = stated(law), law()
    return Evidence(
        statement=statement,
        published=source,
        measured=f"largest error {found.error:.0e} over {found.cases} cases; rounding allows {found.tolerance:.0e}",
        scale="in float64" if found.tolerance else "in whole numbers",
        verdict=EXACT if found.holds else DOES_NOT,
        numbers={"law": name, "error": float(found.error), "tolerance": found.tolerance, "cases": found.cases},
    )
