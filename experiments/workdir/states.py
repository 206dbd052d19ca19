"""The arrays of a state: their description, whether their numbers are finite, and reading them through Orbax."""

import contextlib
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from experiments.program import precision
from experiments.workdir import disk

# Orbax looks for its files by patterns and as addresses (gs://): a path of other characters would be read as another.
_TAME = re.compile(r"[\w./+=,@~-]+", re.ASCII)


def manifest(tree: Any) -> dict[str, str]:
    """Path -> `dtype[shape]` of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def differences(saved: Mapping[str, str], wanted: Mapping[str, str], limit: int = 12) -> list[str]:
    """Lines that say how a saved manifest differs from the wanted one; empty when equal."""
    lines = [f"{k}: saved {saved[k]}, wanted {wanted[k]}" for k in saved if k in wanted and saved[k] != wanted[k]]
    lines += [f"{k}: saved {saved[k]}, not wanted" for k in saved if k not in wanted]
    lines += [f"{k}: wanted {wanted[k]}, not saved" for k in wanted if k not in saved]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more"]


def as_saved(params: Any, saved: Mapping[str, str], group: str) -> Any:
    """Shapes and dtypes of `params`, or of their average, which the manifest may state in a wider dtype than theirs."""
    summed = {"params": params, group: precision.widened(params)}
    return summed[group] if saved.items() >= manifest(summed).items() else params


def not_finite(tree: Any) -> list[str]:
    """Paths of the arrays of a state that hold NaN or Inf; one reduction on the devices, the same answer everywhere."""
    leaves = [(p, x) for p, x in jax.tree_util.tree_leaves_with_path(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = np.asarray(_finite([x for _, x in leaves])) if leaves else ()
    return [jax.tree_util.keystr(path) for (path, _), good in zip(leaves, finite, strict=True) if not good]


def marks(tree: Any) -> bytes:
    """The first numbers of every array of a state: they tell two trained models apart, and are few to read."""
    return b"".join(np.asarray(leaf.ravel()[:16]).tobytes() for leaf in jax.tree.leaves(tree))


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    """`[n]` bool: whether all numbers of each array are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def placed(abstract: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings as Orbax's `ArrayRestoreArgs` tree."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def read(folder: pathlib.Path, target: Any) -> Any:
    """A whole state, laid out as `target` (of `placed`) says."""
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, target)


def read_part(folder: pathlib.Path, target: Any) -> Any:
    """The arrays of a state that `target` names; many processes need not read at once."""
    arguments = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(epath.Path(folder), args=arguments)


def count(folder: pathlib.Path) -> int:
    """How many arrays a saved state has."""
    metadata = ocp.PyTreeCheckpointHandler().metadata(folder)
    return len(jax.tree.leaves(getattr(metadata, "tree", metadata)))


class _Told(logging.Filter):
    """Drops what Orbax logs of a failure in its threads, with traces: the failure is raised, and told in a sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in pathlib.PurePath(record.pathname).parts


_TOLD = _Told()


def saver() -> ocp.AsyncCheckpointer:
    """What writes a state and its description. Not compressed: that saves 8 % of the bytes for 2/3 of the time."""
    absl_logging.get_absl_logger().addFilter(_TOLD)  # The same one again changes nothing.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax's loops: what nobody waited for after a failure.
    state = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(state=state, about=ocp.JsonCheckpointHandler()))


def sample(state: Any) -> Any:
    """Shapes and shardings of the step count and of one array of the parameters: enough to prove that reading works."""
    where = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(state))
    part = {"step": where["step"], "params": {}}
    at, into = where["params"], part["params"]
    while True:
        name = min(at)
        if not isinstance(at[name], Mapping):
            into[name] = at[name]
            return part
        at, into = at[name], into.setdefault(name, {})


class Alias:
    """A path to a folder that Orbax reads as a path: the folder's own, else a link to it in the temporary folder."""

    def __init__(self, folder: pathlib.Path):
        self._holder = None
        self.path = folder
        if not _TAME.fullmatch(os.fspath(folder)):
            place = tempfile.gettempdir()
            place = place if _TAME.fullmatch(place) else "/tmp"
            self._holder = disk.temporary_folder(place)
            self.path = pathlib.Path(self._holder.name) / "checkpoints"
            disk.link(self.path, folder)

    def close(self) -> None:
        """Removes the link, where there is one; calling it again does nothing."""
        if self._holder is not None:
            self._holder.cleanup()
            self._holder = None
