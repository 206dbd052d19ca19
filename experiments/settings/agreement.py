"""What the processes of one run must have in common, and a sentence that says who differs in what.

If two processes differ, the result is a run that nobody asked for, or a deadlock. Two checks prevent this. The first,
before anything is shared, compares flags, config, code, libraries and workdir. The second, before the first step,
compares the corpus and the step that training starts from. Nothing is compared during a step.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from configs import knobs
from experiments.settings import errors, processes
from experiments.settings.keys import flatten

Facts = dict[str, str]  # What is compared, as a person would write it -> how it is here.

MAY_DIFFER = {  # Keys and groups that may differ between the processes of one run -> why they do no harm.
    "data.cache_dir": "each machine may keep tokens on a disk of its own",
    "data.path": "each machine may hold the data elsewhere: the hash of the corpus must be the same",
    "data.components": "each machine may hold the data elsewhere: the hash of the corpus must be the same",
    "plan": "trains nothing",
    "train.profile_step": "each process profiles itself",
    "train.profile_steps": "each process profiles itself",
    "train.wandb": "only process 0 reports",
}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections")
SWITCHES = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_numpy_dtype_promotion")
SHOWN = 6  # Differences that a sentence names; of others it says the number.
SEEN = 5  # Seconds after which a file that another machine wrote must be seen here.


def check_command(mode: str, config: Mapping, workdir: pathlib.Path, **given: Any) -> None:
    """Raises Refused with the same sentence in every process unless mode, config, code and workdir agree.

    Args:
      mode: what this process runs.
      config: its config; only MAY_DIFFER may differ.
      workdir: of the run; it must be one folder, seen by all, wherever each has mounted it.
      given: other flags that decide what is done.

    Nothing to do for a process that is alone.
    """
    if not processes.many():
        return
    here = told({"mode": mode, **given}, config) | code() | libraries() | switches()
    with _marked(workdir) as mark:
        processes.agree("command", {"facts": here, "mark": mark}, lambda main: _differs(here, main, workdir))


def check_start(**facts: Any) -> None:
    """Raises Refused with the same sentence in every process unless all have the same `facts`."""
    if processes.many():
        here = {name.replace("_", " "): str(value) for name, value in facts.items()}
        processes.agree("start", here, lambda main: difference(here, main))


def told(flags: Mapping[str, Any], config: Mapping) -> Facts:
    """What the command line says: flags, and every key of the config that something reads."""
    flat = flatten(config)
    out = set(knobs.unread(flat))
    out |= {key for key in flat if any(key == name or key.startswith(f"{name}.") for name in MAY_DIFFER)}
    kept = {f"--config.{key}": value for key, value in flat.items() if key not in out}
    return {f"--{name}": _text(value) for name, value in flags.items()} | {k: _text(v) for k, v in kept.items()}


def _text(value: Any) -> str:
    """Equal texts for equal values, a tuple and the list of the same elements included."""
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def code(root: pathlib.Path = errors.ROOT) -> Facts:
    """Every file of the rooms, and the first digits of the hash of its text."""
    paths = sorted(p for room in errors.ROOMS for p in (root / room).rglob("*.py"))
    paths = [path for path in (root / "main.py", *paths) if path.is_file()]
    return {
        f"file {path.relative_to(root).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in paths
    }


def libraries() -> Facts:
    """Versions of the libraries that decide numbers."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def switches() -> Facts:
    """Environment variables that change how jax computes."""
    values = sys.modules["jax"].config.values
    xla = " ".join(f for f in sorted(os.environ.get("XLA_FLAGS", "").split()) if not f.startswith("--xla_dump"))
    return {"XLA_FLAGS": xla} | {name: _text(values[name]) for name in SWITCHES if name in values}


def difference(here: Facts, main: Facts) -> str:
    """How this process differs from process 0; "" where it does not."""
    names = [name for name in {**main, **here} if here.get(name) != main.get(name)]
    shown = [_one(name, here.get(name), main.get(name)) for name in names[:SHOWN]]
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*shown, *more])


def _one(name: str, here: str | None, main: str | None) -> str:
    alike = len(os.path.commonprefix([here or "", main or ""]))
    at = max(0, alike - 20)  # A long value is shown where it begins to differ.

    def short(text: str | None) -> str:
        if not text or len(text) <= 60:
            return text or "nothing"
        return f"{'...' if at else ''}{text[at : at + 50]}{'...' if text[at + 50 :] else ''}"

    if name.startswith("file "):
        return f"{name} {'is missing' if here is None else 'is not there' if main is None else 'has another text'}"
    return f"{name}={short(here)} (process 0: {short(main)})"


def _differs(here: Facts, main: Mapping[str, Any], workdir: pathlib.Path) -> str:
    unseen = "" if _sees(workdir, main["mark"]) else f"--workdir={workdir} is another folder than that of process 0"
    return ", ".join(filter(None, [unseen, difference(here, main["facts"])]))


@contextlib.contextmanager
def _marked(workdir: pathlib.Path) -> Iterator[list[str]]:
    """While it is open a file without content, which process 0 makes, shows that others see the same workdir.

    The file lies in the workdir, or where that does not exist yet in the nearest folder that does; its name and the
    rest of the path are the mark. There is none where process 0 only reads, and may not write.
    """
    with contextlib.ExitStack() as stack:
        mark = []
        if processes.is_main():
            place, rest = _nearest(workdir)
            with contextlib.suppress(OSError):
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=place, prefix=".seen-by-all-"))
                mark = [os.path.basename(file.name), rest]
        yield mark


def _sees(workdir: pathlib.Path, mark: list[str], seconds: float = SEEN) -> bool:
    """Whether what process 0 marked is the workdir of this process; a network's file system may be late."""
    end = time.monotonic() + seconds
    while mark:
        place, rest = _nearest(workdir)
        if rest == mark[1] and os.path.exists(place / mark[0]):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
    return True


def _nearest(workdir: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The nearest folder that exists at or above `workdir`, and the rest of the path below it."""
    whole = workdir.absolute()
    place = next(p for p in (whole, *whole.parents) if p.is_dir())
    return place, whole.relative_to(place).as_posix()
