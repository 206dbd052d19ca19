"""A preset as a record: what it changes, one sentence that says what it is, where it is from, and the claim about it.

    PRESETS = {"mdlm": preset({"objective": "masked_diffusion"}, says="...", source="...", claim="toy_likelihood")}

Every file of configs has `PRESETS`, by name; a file without names has one record, named "". `--mode=list` and
docs/GALLERY.md show nothing but these records.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """`changes`: what the file's own `get_config` reads; the others are for readers, see `preset`."""

    changes: Any
    says: str
    source: str
    claim: str = ""
    needs: str = ""


def preset(changes: Any, *, says: str, source: str, claim: str = "", needs: str = "") -> Preset:
    """A record of `PRESETS`.

    Args:
      changes: what the file's `get_config` makes the config of: a dict, or the sizes that its docstring names.
      says: one sentence without its full stop, on one line.
      source: "Author et al. 2023, arXiv:...", or where else the numbers are from.
      claim: the name of a file of docs/claims (without .json) that tests it, "" where there is none.
      needs: the command of a run that must be there before, such as a teacher's; "" where none is read.

    Errors: ValueError where a sentence is missing, or does not stand on one line.
    """
    for name, text in (("says", says), ("source", source)):
        if not text or text != " ".join(text.split()) or text.endswith("."):
            raise ValueError(f"{name}={text!r} must be one sentence on one line, without its full stop.")
    return Preset(changes, says, source, claim, needs)
