"""Checkpoints: Orbax writes them, this module makes them trustworthy.

    WORKDIR/checkpoints/600/            Orbax: the state (sharded, atomic, asynchronous) and `about` (a JSON item)
    WORKDIR/checkpoints/600.sha256.json checksums of every file, written after the commit: Orbax loads flipped bits

A checkpoint without its checksums was never finished and is ignored. A damaged one is named, and the last good one is
used. A checkpoint describes itself: `about` holds the config, library versions and every array's path, shape and dtype.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from experiments.program import precision
from experiments.settings import processes
from experiments.settings.errors import CheckpointError

SUFFIX = ".sha256.json"


class Checkpoints:
    """The checkpoints of one workdir. `close` waits until everything is safe on disk.

    `save` returns at once; many processes write together and return when they are done.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_last: int = 2, keep_every: int = 0, keep_best: int = 0):
        self.root = pathlib.Path(workdir).absolute() / "checkpoints"
        policies = [checkpoint_managers.LatestN(max(1, keep_last))]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        if keep_best:
            policies.append(checkpoint_managers.BestN(get_metric_fn=lambda m: -m["loss"], n=keep_best))
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager: ocp.CheckpointManager | None = None
        self._finisher: threading.Thread | None = None
        self._failure: BaseException | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            if processes.is_main():
                self._sweep()
            processes.wait_for_all("checkpoints")
            options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.root, options=options)
        return self._manager

    def _sweep(self) -> None:
        """Removes what a killed save left: steps without checksums, and checksums without a step."""
        for path in self.root.glob("*"):
            if path.is_dir() and path.name.isdigit() and not self._checksums(int(path.name)).exists():
                shutil.rmtree(path)
            elif path.name.endswith(SUFFIX) and not (self.root / path.name.removesuffix(SUFFIX)).exists():
                path.unlink()

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        found = (p.name.removesuffix(SUFFIX) for p in self.root.glob(f"*{SUFFIX}"))
        return sorted(int(name) for name in found if name.isdigit() and (self.root / name).is_dir())

    def save(self, step: int, state: Any, about: dict, *, loss: float | None = None) -> None:
        """Saves `state` as of `step` in the background; a failure of the save before is raised here."""
        self.wait()
        manager = self._open()
        if processes.from_main(step in self.steps()):
            return
        about = {**about, "arrays": manifest(state)}
        manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
            metrics=None if loss is None else {"loss": loss},
        )
        if processes.many():  # Orbax waits by collectives of all devices, which must not mix with those of training.
            self._finish(manager, step)
            return
        self._finisher = threading.Thread(target=self._try_to_finish, args=(manager, step), name="checkpoint-finisher")
        self._finisher.start()

    def _try_to_finish(self, manager: ocp.CheckpointManager, step: int) -> None:
        try:
            self._finish(manager, step)
        except BaseException as error:  # Handed to the thread that trains.
            self._failure = error

    def _finish(self, manager: ocp.CheckpointManager, step: int) -> None:
        manager.wait_until_finished()
        if processes.is_main():
            _write_atomically(self._checksums(step), json.dumps(_hash_files(self.root / str(step))))
            for old in self.root.glob(f"*{SUFFIX}"):
                if not (self.root / old.name.removesuffix(SUFFIX)).exists():
                    old.unlink()

    def wait(self) -> None:
        """Waits for the save under way and raises what went wrong in it."""
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"checkpoint not written to {self.root}: {failure}. Free the disk or change workdir.")

    def close(self) -> None:
        """Waits until every save is on disk."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def restore(self, abstract: Any, shardings: Any, *, step: int | None = None) -> tuple[int, Any, dict] | None:
        """The newest good checkpoint as `(step, state, about)`, laid out as `shardings`; None when there is none.

        A damaged one is named in the log and the one before it is used. One whose arrays differ from `abstract` is
        refused with the difference (CheckpointError), never loaded in part.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        good = self._newest_good(candidates)
        if good is None and candidates:
            raise CheckpointError(
                f"every checkpoint in {self.root} is damaged (steps {', '.join(map(str, candidates[::-1]))}); "
                "start again in a new --workdir, or restore the folder from a copy."
            )
        if good is None:
            return None
        about = self.about(good)
        difference = differences(about["arrays"], manifest(abstract))
        if difference:
            raise CheckpointError(
                f"checkpoint {self.root / str(good)} holds another model than the config describes:\n"
                + "\n".join(f"  {line}" for line in difference)
            )
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        with ocp.StandardCheckpointer() as reader:
            return good, reader.restore(self.root / str(good) / "state", target), about

    def _newest_good(self, candidates: list[int]) -> int | None:
        """The first of the candidates that is not damaged, None when there is none; process 0 looks, for all."""
        good = -1
        for candidate in candidates if processes.is_main() else ():
            problem = damage(self.root / str(candidate), self._checksums(candidate))
            if not problem:
                good = candidate
                break
            logging.warning("checkpoint %d is damaged (%s); trying the one before it.", candidate, problem)
        good = processes.from_main(good)
        return None if good < 0 else good

    def forget_after(self, step: int) -> None:
        """Moves checkpoints later than `step` (damaged ones that `restore` passed over) out of the way."""
        if not processes.is_main():
            return
        for later in [s for s in self.steps() if s > step]:
            aside = self.root / f"damaged-{later}-{time.strftime('%Y%m%dT%H%M%S')}"
            (self.root / str(later)).rename(aside)
            self._checksums(later).unlink()

    def parameters(self, program: Any) -> Any:
        """The parameters (the averaged ones where a run keeps an average) of the newest good checkpoint.

        Another optimizer or run length is no obstacle; other parameters are refused with the difference.
        """
        step = self._newest_good(self.steps()[::-1])
        if step is None:
            raise CheckpointError(f"{self.root} holds no good checkpoint; give the --workdir of a run that saved one.")
        saved = self.about(step)["arrays"]
        group = "ema" if any(path.startswith("['ema']") for path in saved) else "params"
        params = program.abstract["params"]
        wanted = {group: _as_saved(params, saved, group)}
        mine = {path: text for path, text in saved.items() if path.startswith(f"['{group}']")}
        if difference := differences(mine, manifest(wanted)):
            raise CheckpointError(
                f"checkpoint {self.root / str(step)} holds other parameters than the config describes:\n"
                + "\n".join(f"  {line}" for line in difference)
            )
        placed = {group: program.shardings["params"]}
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), wanted, placed)
        arguments = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return precision.like(reader.restore(self.root / str(step) / "state", args=arguments)[group], params)

    def about(self, step: int) -> dict:
        """The description that was saved with `step`."""
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self.root / str(step) / "about")

    def _checksums(self, step: int) -> pathlib.Path:
        return self.root / f"{step}{SUFFIX}"


def manifest(tree: Any) -> dict[str, str]:
    """Path -> `dtype[shape]` of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _as_saved(params: Any, saved: dict[str, str], group: str) -> Any:
    """Shapes of `params` or of their average, which a manifest may say was summed in a wider type than theirs."""
    summed = {"params": params, group: precision.widened(params)}
    return summed[group] if saved.items() >= manifest(summed).items() else params


def differences(saved: dict[str, str], wanted: dict[str, str], limit: int = 12) -> list[str]:
    """Lines that say how a saved manifest differs from the wanted one; empty when equal."""
    lines = [f"{k}: saved {saved[k]}, wanted {wanted[k]}" for k in saved if k in wanted and saved[k] != wanted[k]]
    lines += [f"{k}: saved {saved[k]}, not wanted" for k in saved if k not in wanted]
    lines += [f"{k}: wanted {wanted[k]}, not saved" for k in wanted if k not in saved]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more"]


def damage(folder: pathlib.Path, checksums: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint, or ""."""
    try:
        expected = json.loads(checksums.read_text())
    except (OSError, ValueError):
        return f"{checksums.name} is missing or unreadable"
    actual = _hash_files(folder)
    for name, digest in expected.items():
        if name not in actual:
            return f"{name} is missing"
        if actual[name] != digest:
            return f"{name} does not match its checksum"
    return ""


def _hash_files(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _write_atomically(path: pathlib.Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
