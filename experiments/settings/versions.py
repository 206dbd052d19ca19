"""Says plainly, before jax is imported, that installed versions do not go together."""

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from typing import Any

FOLLOWERS = ("jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")


def _version(package: str) -> tuple[int, ...] | None:
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return _numbers(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def disagreement(versions: dict[str, tuple[int, ...] | None] | None = None) -> str:
    """One sentence when jax and its companions disagree, else "". `versions` stands in for what is installed."""
    if versions is None:
        versions = {name: _version(name) for name in ("jax", *FOLLOWERS)}
    jax = versions.get("jax")
    if jax is None:
        return "jax is not installed; run `pip install -r requirements.txt`."
    shown = ".".join(map(str, jax))
    if not (0, 10) <= jax[:2] < (0, 13):
        return f'jax {shown} is outside the tested range 0.10 to 0.12; run `pip install "jax>=0.10,<0.13"`.'
    for name in FOLLOWERS:
        other = versions.get(name)
        # A jaxlib may trail its jax by a patch release, never lead it; plugins follow jaxlib.
        if other is not None and (other[:2] != jax[:2] or other > jax):
            return (
                f"{name} {'.'.join(map(str, other))} does not go with jax {shown}; "
                f'run `pip install -U "jax=={shown}" "{name}=={shown}"`.'
            )
    return "" if versions.get("jaxlib") else f"jaxlib is not installed; run `pip install jaxlib=={shown}`."


def outdated(modules: Mapping[str, Any] | None = None) -> str:
    """One sentence when this process has a library in memory that was replaced on disk since, else "".

    Args:
      modules: name -> module; None: what this process has loaded.
    """
    modules = sys.modules if modules is None else modules
    for package in ("numpy", "scipy", "jax", "jaxlib", "matplotlib"):
        loaded = getattr(modules.get(package), "__version__", "")
        if loaded and (there := _version(package)) and _numbers(loaded) != there:
            return f"{package} {loaded} is loaded and another one installed; restart the runtime and run this again."
    return ""
