"""What the house can run: every preset, sweep and claim as one record, read from configs/ without jax."""

import collections
import dataclasses
import importlib
import json
import pathlib
from collections.abc import Iterator
from types import ModuleType

from configs.presets import Preset

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "docs" / "claims"
_NO_CONFIG = ("__init__", "base", "presets")
_KINDS = {"": ("get_config", ""), "sweeps": ("get_sweep", "--mode=sweep "), "claims": ("get_claim", "--mode=claim ")}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing to run.

    family: the file within configs/, "diffusion" or "sweeps/scaling".
    title: the first sentence of its docstring.
    preset: a name, or "" where the file has none.
    says, source: as in `configs.presets`.
    claim: the name of its evidence or "".
    verdicts: how many rows of that evidence have each verdict.
    command: what runs it.
    needs: the command of a run that it reads, to be run before; "" where it reads none.
    """

    family: str
    title: str
    preset: str
    says: str
    source: str
    claim: str
    verdicts: dict[str, int]
    command: str
    needs: str = ""


def entries(evidence: pathlib.Path = EVIDENCE) -> list[Entry]:
    """Every preset of configs/, then of configs/sweeps, then every claim of configs/claims, file by file.

    `evidence`: the folder with a JSON file for each claim that was run.
    """
    return [entry for folder in _KINDS for path in _files(folder) for entry in _entries(folder, path, evidence)]


def _files(folder: str) -> list[pathlib.Path]:
    return [path for path in sorted((ROOT / "configs" / folder).glob("*.py")) if path.stem not in _NO_CONFIG]


def _entries(folder: str, path: pathlib.Path, evidence: pathlib.Path) -> Iterator[Entry]:
    family = f"{folder}/{path.stem}" if folder else path.stem
    module = importlib.import_module(f"configs.{family.replace('/', '.')}")
    function, mode = _KINDS[folder]
    if not hasattr(module, function):
        return
    title = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").rstrip(".")
    for name, made in _records(folder, module, title).items():
        config = f"configs/{family}.py{':' if name else ''}{name}"
        run = f"runs/{'claims/' if folder == 'claims' else ''}{path.stem}{'-' if name else ''}{name}"
        jobs = " --jobs=2" if mode else ""
        command = f"python main.py {mode}--config={config} --workdir={run}{jobs}"
        found = verdicts(made.claim, evidence)
        yield Entry(family, title, name, made.says, made.source, made.claim, found, command, made.needs)


def _records(folder: str, module: ModuleType, title: str) -> dict[str, Preset]:
    """The records of a file; of a claim what it states; of a file that has none, what its docstring says first."""
    if folder == "claims":
        made = module.get_claim()
        return {"": Preset({}, made["statement"], made["source"], module.__name__.rpartition(".")[2])}
    return getattr(module, "PRESETS", None) or {"": Preset({}, title, "", "")}


def verdicts(claim: str, evidence: pathlib.Path = EVIDENCE) -> dict[str, int]:
    """How many rows of CLAIM.json in `evidence` have each verdict; empty where there is no such file."""
    path = evidence / f"{claim}.json"
    if not claim or not path.exists():
        return {}
    return dict(collections.Counter(row["verdict"] for row in json.loads(path.read_text("utf-8"))["rows"]))


def judged(entry: Entry) -> str:
    """The evidence of an entry in words: "recall: holds 1, undecided 2"; "" where it names none."""
    if not entry.claim:
        return ""
    counts = ", ".join(f"{verdict} {count}" for verdict, count in sorted(entry.verdicts.items()))
    return f"{entry.claim}: {counts or 'not run yet'}"
