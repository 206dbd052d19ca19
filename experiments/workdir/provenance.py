"""Which code made a run: the commit, what differs from it, the packages, the command and the host.

The facts stand in run.json under "code"; the differences themselves, where there are any, in `code.diff` of the
workdir. Nothing here can stop a run: what cannot be found out is left away.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from experiments.settings import agreement, errors, overrides
from experiments.workdir import disk

DIFF = "code.diff"
LONGEST = 2**20  # Bytes of a diff that are kept; run.json has the hash of all of it.


def facts(root: pathlib.Path = errors.ROOT, text: bytes | None = None) -> dict[str, Any]:
    """What run.json keeps of the code.

    Args:
      root: the checkout that runs.
      text: its `difference`, where it was asked for already.

    Returns:
      "hash": first digits of the hash of every file of the rooms. Where `root` is a git checkout, "commit" and
      "changed" (the paths that differ from it, untracked ones too), and "diff", the hash of the differences, where
      there are any. "command": as it was typed. "host": the class of machine, without its name. "packages": {name:
      version}.
    """
    texts = agreement.code(root)
    found = {"hash": hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:12]}
    if commit := _git(root, "rev-parse", "HEAD"):
        status = _git(root, "status", "--porcelain", "--untracked-files=normal")
        found |= {"commit": commit.strip(), "changed": sorted(line[3:] for line in status.splitlines())}
        if text := difference(root) if text is None else text:
            found["diff"] = hashlib.sha256(text).hexdigest()[:12]
    return found | {
        "command": overrides.command(os.path.basename(sys.executable or "python")),
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "packages": packages(),
    }


def difference(root: pathlib.Path = errors.ROOT) -> bytes:
    """What `git diff HEAD` prints in `root`; b"" without a difference or without git."""
    return _git(root, "diff", "HEAD", "--no-ext-diff", "--binary").encode("utf-8", "surrogateescape")


def packages() -> dict[str, str]:
    """Every installed distribution and its version, by name: what `pip freeze` would say."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name not in found:  # The first on the path is the one that is imported.
            found[name] = distribution.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def write(workdir: str | os.PathLike) -> dict[str, Any]:
    """Keeps the differences of this start in `workdir` (or removes those of an earlier one) and returns the facts."""
    path, text = pathlib.Path(workdir) / DIFF, difference()
    if text:
        disk.write_file(path, text[:LONGEST])
    else:
        disk.remove(path)
    return facts(text=text)


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what the code of two runs differs, as a reader would say it; "" where it is the same or one says nothing.

    Args:
      one: "code" of a run's run.json.
      other: that of another run.
    """
    if not one.get("hash") or not other.get("hash") or one["hash"] == other["hash"]:
        return ""
    commits = [str(code.get("commit") or "no commit")[:12] for code in (one, other)]
    changed = ["with changes" if code.get("diff") else "as committed" for code in (one, other)]
    said = [f"{commit} {word}" for commit, word in zip(commits, changed, strict=True)]
    return f"{said[0]} and {said[1]}" if said[0] != said[1] else f"{said[0]}, of different texts"


def _git(root: pathlib.Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    # A checkout inside somebody else's repository would give that one's commit.
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=20, check=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape")
