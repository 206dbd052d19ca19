"""Checkpoints: Orbax writes them, this module makes them trustworthy.

    WORKDIR/checkpoints/600/            Orbax: the state (sharded) and `about` (a JSON item)
    WORKDIR/checkpoints/600.sha256.json checksums of every file: Orbax loads flipped bits
    WORKDIR/checkpoints/600.saving/     a save under way; 600.deleted/ a step that this run let go of

A step is written as `600.saving`, its checksums are taken, and one rename makes it a checkpoint: a kill at any instant
leaves all of it or none. It describes itself: `about` holds its step, the held-out loss measured there, the config,
library versions and every array's path, shape and dtype. Whether a step is good is decided by `vouched.problem`, and
after reading it by its own step count and by its numbers being finite; one that is not is named, and the one before it
used. Nothing is deleted but what `retention.kept` of this run's own steps leaves out, and unfinished saves.
"""

import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from experiments import workdir as files
from experiments.program import precision
from experiments.settings import processes
from experiments.settings.errors import CheckpointError
from experiments.workdir import disk, retention, shared, states, vouched
from experiments.workdir.states import differences, manifest

__all__ = ["CheckpointError", "Checkpoints", "differences", "manifest"]

Read = Callable[[pathlib.Path, dict], Any]  # (folder of a state, its `about`) -> what is wanted of it


class Checkpoints:
    """The checkpoints of one workdir. `close` waits until everything is safe on disk.

    `save` returns when the state is copied: one process or many write, hash and vouch beside training. With the run's
    `config`, a plain dict, a checkpoint saved under the config of another run is not good.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
        config: Mapping[str, Any] | None = None,
        folder: str = files.CHECKPOINTS,
    ):
        self.root = pathlib.Path(workdir).absolute() / folder
        self._keep = {"last": keep_last, "every": keep_every, "best": keep_best}
        self._config = config
        self._alias: states.Alias | None = None
        self._saver: ocp.AsyncCheckpointer | None = None
        self._losses: dict[int, float | None] = {}  # Of this run's own steps: what retention chooses from.
        self._proved = False
        self._finisher: threading.Thread | None = None
        self._failure: Exception | None = None
        self.cost = shared.Cost()

    # ==================== Saving ====================

    def save(self, step: int, state: Any, about: dict, *, loss: float | None = None) -> None:
        """Saves `state` in the background; a failure of the save before is raised here.

        step: updates that the state has had.
        about: what the checkpoint says of itself, plain JSON.
        loss: the held-out loss measured at this step, None if none was.
        """
        began = time.perf_counter()
        self.wait()
        try:
            self._open()
            if processes.from_main(step in self._losses):
                return
            about = {**about, "step": step, "loss": loss, "taken": int(state["step"]), "arrays": manifest(state)}
            sample = None if self._proved else states.sample(state)
            self._saver.save(
                self._path / f"{step}.saving",
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)),
            )
        except Exception as error:
            raise self._explained(step, error) from error
        # It may use no collective of the devices: these would mix with those of training.
        self._finisher = threading.Thread(
            target=self._try_to_finish, args=(step, loss, sample), name="checkpoint-finisher"
        )
        self._finisher.start()
        self.cost.stood += time.perf_counter() - began

    @property
    def _path(self) -> pathlib.Path:
        """`root` as Orbax may be told it."""
        if self._alias is None:
            self._alias = states.Alias(self.root)
        return self._alias.path

    def _open(self) -> None:
        if self._saver is not None:
            return
        if processes.is_main():
            disk.own_folder(self.root)
            self._tidy()
            for step in vouched.finished(self.root):
                try:
                    if not vouched.own_problem(self.root, step, self._config):
                        self._losses[step] = vouched.loss(self.root, step)
                except (OSError, ValueError):  # Nobody's: it stays where it is.
                    continue
        processes.wait_for_all("checkpoints")
        self._saver = states.saver()

    def _tidy(self) -> None:
        """Removes what this run was about to remove, and saves that were killed before they were checkpoints."""
        for name in disk.names(self.root):
            step, _, rest = name.partition(".")
            if not vouched.is_step(step):
                continue
            if rest == "deleted" and not os.path.lexists(self.root / step):
                disk.remove(vouched.checksums(self.root, int(step)))
            if rest == "deleted" or rest.startswith(("saving", "orbax-checkpoint-tmp")):
                disk.remove(self.root / name)

    def _try_to_finish(self, step: int, loss: float | None, sample: Any) -> None:
        try:
            self._finish(step, loss)
            if sample is not None:
                self._prove(step, sample)
                self._proved = True
        except Exception as error:  # Handed to the thread that trains.
            self._failure = self._explained(step, error)
            self._failure.__cause__ = error  # By which a lost process is known.

    def _finish(self, step: int, loss: float | None) -> None:
        """Makes `step.saving` the checkpoint `step`, then lets go of those that are not kept."""

        def stand(said: list[dict[str, str]]) -> None:
            self._stand(step, loss, {name: digest for digests in said for name, digest in digests.items()})

        saving = self.root / f"{step}.saving"
        shared.together(
            f"saved/{self.root.name}", lambda: shared.written(saving, self._saver.wait_until_finished, self.cost), stand
        )

    def _stand(self, step: int, loss: float | None, digests: dict[str, str]) -> None:
        """Vouches for a save, gives it its name and lets go of what is not kept; in process 0."""
        saving, place = self.root / f"{step}.saving", self.root / str(step)
        if os.path.lexists(place):
            self._set_aside(step, "it is not of this run, which has come to that step itself")
        vouched.write_checksums(self.root, step, digests)
        disk.rename(saving, place)
        disk.keep(self.root)
        self._losses[step] = loss
        for old in set(self._losses) - retention.kept(self._losses, **self._keep):
            self._delete(old)

    def _delete(self, step: int) -> None:
        """Removes a step of this run: first from sight, so that no half of one is ever seen."""
        gone = self.root / f"{step}.deleted"
        del self._losses[step]
        disk.remove(gone)
        if disk.is_folder(self.root / str(step)):
            disk.rename(self.root / str(step), gone)
            disk.remove(vouched.checksums(self.root, step))
            disk.remove(gone)

    def _prove(self, step: int, sample: Any) -> None:
        """Reads a step back as a later start will: its description, its structure, and an array on every device."""
        about = vouched.about(self.root, step)
        folder = self._path / str(step) / "state"
        found = states.count(folder)
        if found != len(about["arrays"]):
            raise CheckpointError(f"{found} arrays of {len(about['arrays'])} are found when it is read back")
        if int(states.read_part(folder, sample)["step"]) != about["taken"]:
            raise CheckpointError("it holds another step when it is read back")

    def _explained(self, step: int, error: Exception) -> CheckpointError:
        """One sentence for a save that failed."""
        if isinstance(error, disk.WorkdirError) and str(self.root.parent) in str(error):
            return CheckpointError(f"checkpoint {step} was not written: {error}")
        return CheckpointError(
            f"checkpoint {step} was not written to {self.root}: {shared.reason(error)}; free the disk or change "
            "--workdir, then start the same command again to resume."
        )

    def wait(self) -> None:
        """Waits for the save under way and raises what went wrong in it."""
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """Waits until every save is on disk."""
        try:
            self.wait()
        finally:
            saver, alias = self._saver, self._alias
            self._saver = self._alias = None
            if saver is not None:
                try:
                    saver.close()
                except Exception as error:  # Of a save that failed, and was told.
                    logging.info("closing: %s", error)
            if alias is not None:
                alias.close()

    # ==================== What is there ====================

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first; whether one is good is known when it is read."""
        return vouched.finished(self.root)

    def present(self) -> list[int]:
        """Every step that has a folder or a file of checksums, good or not, oldest first."""
        return vouched.present(self.root)

    def about(self, step: int) -> dict:
        """The description that was saved with `step`. ValueError where it cannot be read."""
        return vouched.about(self.root, step)

    def newest_about(self) -> dict:
        """The description of the newest step that can describe itself; {} where none can."""
        for step in reversed(self.present()):
            try:
                if not vouched.own_problem(self.root, step, self._config):
                    return self.about(step)
            except (OSError, ValueError):
                continue
        return {}

    def named(self, name: str) -> int | None:
        """The step that a person names: a number, or "best" (the lowest held-out loss); None for "", the newest good.

        Raises CheckpointError with one sentence.
        """
        steps = self.steps()
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        if not name:
            return None
        if name != "best":
            if not vouched.is_step(name) or int(name) not in steps:
                raise CheckpointError(
                    f"--step={name} is no finished checkpoint in {self.root}; {there}, or --step=best."
                )
            return int(name)
        losses = {}
        for step in steps:
            try:
                losses[step] = vouched.loss(self.root, step)
            except (OSError, ValueError) as error:
                logging.warning("checkpoint %d cannot be read (%s); it is not among the best.", step, error)
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        if not measured:
            raise CheckpointError(
                f"--step=best: no checkpoint in {self.root} was evaluated when it was saved; {there}; give "
                "--step=N, and train with an eval.every that falls together with checkpoint.every."
            )
        return min(measured, key=lambda step: (measured[step], -step))

    # ==================== Reading ====================

    def restore(self, abstract: Any, shardings: Any, *, step: int | None = None) -> tuple[int, Any, dict] | None:
        """The newest good checkpoint as `(step, state, about)`, laid out as `shardings`; None when there is none.

        A checkpoint is not good if it is damaged, has no checksums, belongs to another run or step, holds NaN or Inf,
        or has other arrays than `abstract`. It is then named in the log, and the one before it is used. Raises
        CheckpointError if there are checkpoints and none is good.
        """
        wanted, target = manifest(abstract), states.placed(abstract, shardings)

        def read(folder: pathlib.Path, about: dict) -> Any:
            _same(about["arrays"], wanted, "another model than the config describes")
            return states.read(folder, target)

        way = ", start again in a new --workdir, or add --overwrite to move them aside"
        return self._newest_good(self.present()[::-1] if step is None else [step], read, way)

    def parameters(self, program: Any, *, step: int | None = None) -> Any:
        """The parameters (the averaged ones where a run keeps an average) of the newest good checkpoint, or of `step`.

        Another optimizer or run length is no obstacle; other parameters are refused with the difference.
        """
        return self.read_parameters(program, step=step)[1]

    def read_parameters(self, program: Any, *, step: int | None = None, average: bool = True) -> tuple[int, Any, dict]:
        """`(step, parameters, about)`; see `parameters`. `average=False`: not the averaged ones, whatever is kept.

        schedule_free keeps its average in the optimizer: of a program with that optimizer it is read from there.
        """
        free = average and program.config.optimizer.name == "schedule_free"

        def read(folder: pathlib.Path, about: dict) -> Any:
            group = "ema" if average and averaged(about) else "params"
            if free and group == "params" and dict(about["arrays"]).items() >= manifest(program.abstract).items():
                state = states.read(folder, states.placed(program.abstract, program.shardings))
                found = jax.jit(program.evaluation_params, out_shardings=program.shardings["params"])(state)
                return {"step": state["step"], "params": found}
            params = program.abstract["params"]
            wanted = {group: states.as_saved(params, about["arrays"], group)}
            mine = {path: text for path, text in about["arrays"].items() if path.startswith(f"['{group}']")}
            _same(mine, manifest(wanted), "other parameters than the config describes")
            target = states.placed(
                wanted | {"step": program.abstract["step"]},
                {group: program.shardings["params"], "step": program.shardings["step"]},
            )
            found = states.read_part(folder, target)
            return {"step": found["step"], "params": precision.like(found[group], params)}

        found = self._newest_good(self.present()[::-1] if step is None else [step], read)
        if found is None:
            raise CheckpointError(f"{self.root} holds no good checkpoint; give the --workdir of a run that saved one.")
        step, read_back, about = found
        return step, read_back["params"], about

    def _newest_good(self, candidates: Sequence[int], read: Read, way: str = "") -> tuple[int, Any, dict] | None:
        """The first of the candidates that is good, as `(step, what was read, about)`; None where there are none.

        Process 0 chooses, for all; each verifies a share of the bytes, then all read. `way`: what else helps where none
        is good.
        """
        rejected: dict[int, str] = {}
        left = list(candidates) if processes.is_main() else []
        while (step := processes.from_main(left.pop(0) if left else -1)) >= 0:
            mine = vouched.problem(self.root, step, self._config, part=processes.which())
            why, found, about = processes.through_main(f"vouched/{self.root.name}", mine, shared.first_said), None, {}
            if not why:
                why, found, about = self._read(step, read)
                if shared.all_processes(not why):
                    return step, found, about
            rejected[step] = why or "another process cannot read it"
            if processes.is_main():
                logging.warning("checkpoint %d is damaged (%s); trying the one before it.", step, rejected[step])
        if not processes.from_main(len(rejected)):
            return None
        steps = ", ".join(map(str, sorted(rejected)))
        newest = max(rejected, default=0)
        raise CheckpointError(
            f"every checkpoint in {self.root} is damaged or of another run (steps {steps}); restore the folder from a "
            f"copy{way}.\n  checkpoint {newest}: {rejected.get(newest, '')}"
        )

    def _read(self, step: int, read: Read) -> tuple[str, Any, dict]:
        """`(why not, what was read, about)` of a step whose files are those that were written."""
        try:
            about = vouched.about(self.root, step)
            found = read(self._path / str(step) / "state", about)
        except CheckpointError as error:
            return str(error), None, {}
        except Exception as error:  # Files can be vouched for and still hold what no library reads.
            return f"it cannot be read: {shared.reason(error)}", None, {}
        # Before it was written down how many steps a state has taken, that was the step it was saved as.
        if int(found["step"]) != about.get("taken", step):
            return f"its state is of step {int(found['step'])}", None, {}
        if wrong := states.not_finite(found):
            more = f" and {len(wrong) - 1} more arrays are" if len(wrong) > 1 else " is"
            return f"{wrong[0]}{more} not finite", None, {}
        return "", found, about

    def forget_after(self, step: int) -> None:
        """Moves checkpoints later than `step` (those that `restore` passed over) out of the way, and names them."""
        if processes.is_main():
            for later in self.present():
                if later > step:
                    self._set_aside(later, f"the run goes on from step {step}")

    def _set_aside(self, step: int, why: str) -> None:
        aside = disk.move_aside(self.root / str(step), "damaged")
        vouching = vouched.checksums(self.root, step)
        if os.path.lexists(vouching):
            disk.rename(vouching, aside.with_name(aside.name + vouched.SUFFIX))
        logging.warning("checkpoint %d was moved to %s: %s.", step, aside, why)


def averaged(about: Mapping[str, Any]) -> bool:
    """Whether a checkpoint that describes itself so holds an average of the parameters."""
    return any(path.startswith("['ema']") for path in about["arrays"])


def _same(saved: Mapping[str, str], wanted: Mapping[str, str], what: str) -> None:
    if difference := differences(saved, wanted):
        raise CheckpointError(f"it holds {what}:\n" + "\n".join(f"    {line}" for line in difference))
